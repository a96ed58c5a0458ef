#include "tenon/core/thread.h"

#include <cerrno>
#include <cstring>
#include <memory>

#include "tenon/core/env.h"
#include "tenon/core/guard.h"

namespace tenon {
namespace {

void give_name(pthread_t thread, const std::string& name) {
  pthread_setname_np(thread, name.substr(0, 15).c_str());
}

struct Start {
  std::string name, end;  // the latter for the log
  std::function<void()> work;
};

void* run(void* argument) {
  const std::unique_ptr<Start> start(static_cast<Start*>(argument));
  give_name(pthread_self(), start->name);  // for its own work
  const Status ended = guarded([&] { start->work(); });
  if (!ended) log_failure(start->end, ended);
  return nullptr;
}

Status refused(const std::string& name, int error) {
  std::string why = "could not start the thread \"" + name + "\": " + std::strerror(error);
  if (error == EAGAIN)
    why +=
        "; the limits of threads (ulimit -u), of memory or of addresses (ulimit -v) leave room "
        "for none with a stack of " +
        std::to_string(kThreadStackBytes >> 20) + " MiB";
  return Status::error(Code::kOutOfMemory, std::move(why));
}

}  // namespace

void Thread::join() {
  if (running_) pthread_join(*std::exchange(running_, std::nullopt), nullptr);
}

void Thread::detach() {
  if (running_) pthread_detach(*std::exchange(running_, std::nullopt));
}

Result<Thread> start_thread(const std::string& name, std::function<void()> work) {
  return guarded([&]() -> Result<Thread> {
    auto start =
        std::make_unique<Start>(Start{name, "thread \"" + name + "\" ended", std::move(work)});
    pthread_t thread{};
    pthread_attr_t attributes;
    int error = pthread_attr_init(&attributes);
    if (error != 0) return refused(name, error);
    error = pthread_attr_setstacksize(&attributes, kThreadStackBytes);
    if (error == 0) error = pthread_create(&thread, &attributes, run, start.get());
    pthread_attr_destroy(&attributes);
    if (error != 0) return refused(name, error);
    static_cast<void>(start.release());  // the thread's now
    give_name(thread, name);             // for the caller: it may not have begun
    return Thread(thread);
  });
}

}  // namespace tenon
