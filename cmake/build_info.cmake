# Writes OUTPUT, the definition of VARIABLE, a tenon::BuildInfo that HEADER declares, when its content changes:
#   cmake -DOUTPUT=... -DHEADER=... -DVARIABLE=... -DSOURCE=<tree> -DVERSION=... -DBUILD=... -DCOMPILER=... -DTARGETS=... -P this
# Run by the build, not by the configure step, so that the commit is that of what was built. A tree that was
# unpacked inside another repository has none.
execute_process(COMMAND git -C ${SOURCE} rev-parse --show-prefix --short=12 HEAD
                OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
set(modified false)
string(STRIP "${commit}" commit)
if(failed OR NOT commit MATCHES "^[0-9a-f]+$")
  set(commit unknown)
else()
  execute_process(COMMAND git -C ${SOURCE} status --porcelain --untracked-files=no
                  OUTPUT_VARIABLE changes ERROR_QUIET)
  if(changes)
    set(modified true)
  endif()
endif()
file(CONFIGURE OUTPUT ${OUTPUT} @ONLY CONTENT [==[// Made by cmake/build_info.cmake.
#include "@HEADER@"

const tenon::BuildInfo @VARIABLE@{"@VERSION@", "@commit@", @modified@, "@BUILD@", "@COMPILER@", "@TARGETS@"};
]==])
