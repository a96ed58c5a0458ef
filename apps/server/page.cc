#include "apps/server/page.h"

namespace tenon::server {

const PageFile* find_page_file(std::string_view path) {
  for (const PageFile& file : page_files())
    if (file.path == path) return &file;
  return nullptr;
}

HttpHead page_head(const PageFile& file) {
  // Text of a model can become markup by no mistake of the scripts: nothing of it would run, and
  // with trusted types the browser refuses every assignment of HTML.
  return {200,
          std::string(file.content_type),
          {{"content-security-policy",
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
            "require-trusted-types-for 'script'; trusted-types 'none'"},
           {"x-content-type-options", "nosniff"},
           {"referrer-policy", "no-referrer"},
           {"cross-origin-opener-policy", "same-origin"},
           {"cross-origin-resource-policy", "same-origin"},
           {"cache-control", "no-cache"}}};
}

}  // namespace tenon::server
