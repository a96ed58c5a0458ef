# Writes OUTPUT, the definition of apps/server/page.h's page_files(), from the files of FOLDER:
#   cmake -DOUTPUT=... -DFOLDER=<apps/server/page> -P this
# Bytes are written as numbers, so that nothing in a file can mean something in C++.
set(arrays "")
set(entries "")
file(GLOB names RELATIVE ${FOLDER} ${FOLDER}/*)
list(SORT names)
foreach(name IN LISTS names)
  if(name MATCHES "\\.html$")
    set(type "text/html; charset=utf-8")
  elseif(name MATCHES "\\.css$")
    set(type "text/css; charset=utf-8")
  elseif(name MATCHES "\\.js$")
    set(type "text/javascript; charset=utf-8")
  else()
    message(FATAL_ERROR "${FOLDER}/${name}: the kind of this file is not known; accepted are .html, .css, .js")
  endif()
  set(path "/${name}")
  if(name STREQUAL "index.html")
    set(path "/")
  endif()
  file(READ ${FOLDER}/${name} bytes HEX)
  string(REGEX REPLACE "(................................)" "\\1\n" bytes "${bytes}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "'\\\\x\\1'," bytes "${bytes}")
  string(MAKE_C_IDENTIFIER "k_${name}" array)
  string(APPEND arrays "constexpr char ${array}[] = {\n${bytes}};\n")
  string(APPEND entries "    {\"${path}\", \"${type}\", {${array}, sizeof ${array}}},\n")
endforeach()
file(WRITE ${OUTPUT} "// Made by cmake/page_files.cmake.
#include \"apps/server/page.h\"

namespace tenon::server {
namespace {

${arrays}
constexpr PageFile kFiles[] = {
${entries}};

}  // namespace

std::span<const PageFile> page_files() { return kFiles; }

}  // namespace tenon::server
")
