// What the server takes and gives, for programs: an OpenAPI 3.1 document, made of the routes and of
// one table of fields. What the fields mean is in docs/serve.md.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tenon::server {

// What the body of a request holds, and so what comes back.
enum class ApiBody : std::uint8_t {
  kChat,
  kCompletion,
  kMessages,
  kCountTokens,
  kGenerate,
  kRenderChat,
  kRenderCompletion,
  kTokenize,
  kDetokenize,
  // Requests without a body.
  kHealth,
  kVersion,
  kMetrics,
  kModels,
  kModel,
  kModelInfo,
  kServerInfo,
  kLoad,
  kGenerated,  // asks for a token
  kDescription,
  kPage,  // for browsers: not described
};

// One path of the server.
struct ApiPath {
  std::string_view path;  // one that ends with '/' is followed by the name of a model
  std::string_view method;
  ApiBody body;
  bool open;  // needs no key
};

// The document, as JSON. `keys`: whether requests need one.
std::string openapi_document(const std::vector<ApiPath>& paths, const std::string& version,
                             bool keys);

}  // namespace tenon::server
