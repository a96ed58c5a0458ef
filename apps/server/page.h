// The page at "/": files of apps/server/page, put into the program by the build
// (cmake/page_files.cmake). They are sent as they are; nothing of a request goes into them.
#pragma once

#include <span>
#include <string_view>

#include "apps/server/http.h"

namespace tenon::server {

struct PageFile {
  std::string_view path;          // "/page.js"; that of index.html is "/"
  std::string_view content_type;  // of HTTP
  std::string_view bytes;
};

std::span<const PageFile> page_files();

// The file of a path, or null.
const PageFile* find_page_file(std::string_view path);

// How it is answered: what is shown may run no script and load nothing but these files.
HttpHead page_head(const PageFile& file);

}  // namespace tenon::server
