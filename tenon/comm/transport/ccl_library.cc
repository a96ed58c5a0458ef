#include "tenon/comm/transport/ccl_library.h"

#include <dlfcn.h>

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "tenon/core/env.h"

namespace tenon::transport_ccl {
namespace {

std::vector<std::string> names_for(Target target) {
  if (!env().ccl_library.empty()) return {env().ccl_library};
  if (target == Target::kHip) return {"librccl.so.1", "librccl.so"};
  if (target == Target::kCuda) return {"libnccl.so.2", "libnccl.so"};
  return {};
}

template <class Function>
bool find(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
  return function != nullptr;
}

// What is missing in the library, or null.
const char* fill(void* handle, Library& library) {
  if (!find(handle, "ncclGetVersion", library.version)) return "ncclGetVersion";
  if (!find(handle, "ncclGetUniqueId", library.draw_id)) return "ncclGetUniqueId";
  if (!find(handle, "ncclCommInitRankConfig", library.init)) return "ncclCommInitRankConfig";
  if (!find(handle, "ncclCommGetAsyncError", library.async_error)) return "ncclCommGetAsyncError";
  if (!find(handle, "ncclCommAbort", library.abort)) return "ncclCommAbort";
  if (!find(handle, "ncclCommDestroy", library.destroy)) return "ncclCommDestroy";
  if (!find(handle, "ncclAllGather", library.all_gather)) return "ncclAllGather";
  if (!find(handle, "ncclAllReduce", library.all_reduce)) return "ncclAllReduce";
  if (!find(handle, "ncclGetErrorString", library.error_text)) return "ncclGetErrorString";
  find(handle, "ncclGetLastError", library.last_error);
  library.serves_hosts = dlsym(handle, "tenon_ccl_serves_hosts") != nullptr;
  return nullptr;
}

// Loaded libraries stay: they have threads of their own.
Result<std::unique_ptr<const Library>> load(const std::string& name) {
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* why = dlerror();
    return Status::error(Code::kUnsupported, why != nullptr ? why : name + " cannot be loaded");
  }
  auto library = std::make_unique<Library>();
  library->file = name;
  const char* missing = fill(handle, *library);
  if (missing == nullptr) return std::unique_ptr<const Library>(std::move(library));
  dlclose(handle);
  return Status::error(Code::kUnsupported, name + " has no function " + missing +
                                               "; accepted: NCCL or RCCL, 2.18 or later");
}

Result<const Library*> load_first(Target target) {
  static std::map<std::string, std::unique_ptr<const Library>> loaded;
  const std::vector<std::string> names = names_for(target);
  if (names.empty())
    return Status::error(Code::kUnsupported,
                         "NCCL serves devices, not " + std::string(name(target)));
  std::string tried;
  for (const std::string& each : names) {
    auto& place = loaded[each];
    if (place != nullptr) return place.get();
    auto library = load(each);
    if (library) return (place = *std::move(library)).get();
    tried += (tried.empty() ? "" : "; ") + std::string(library.status().message());
  }
  return Status::error(Code::kUnsupported,
                       "no library: " + tried + " (TENON_CCL_LIBRARY names another file)");
}

}  // namespace

std::string Library::describe(const char* function, int answer, Comm comm) const {
  const char* text = error_text(answer);
  std::string sentence = std::string(function) + ": " + (text != nullptr ? text : "error") + " (" +
                         std::to_string(answer) + ")";
  const char* detail = last_error != nullptr && comm != nullptr ? last_error(comm) : nullptr;
  if (detail != nullptr && *detail != 0) sentence += ": " + std::string(detail);
  while (!sentence.empty() && sentence.back() == '\n') sentence.pop_back();
  return sentence;
}

Result<const Library*> library_for(Target target) {
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  TENON_ASSIGN(const Library* const found, load_first(target));
  if (found->serves_hosts != is_host(target))
    return Status::error(Code::kUnsupported,
                         found->file + " serves " +
                             (found->serves_hosts ? "host targets" : "devices") + ", not " +
                             std::string(name(target)));
  return found;
}

}  // namespace tenon::transport_ccl
