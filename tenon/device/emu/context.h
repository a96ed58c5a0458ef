// Switching stacks: a hand-written switch for x86-64, ucontext elsewhere (or everywhere, with
// TENON_PORTABLE_FIBERS). Tells the address sanitizer about it. Private to emu/fibers.cc.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#define TENON_PORTABLE_FIBERS 1
#endif
#if defined(TENON_PORTABLE_FIBERS)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(TENON_PORTABLE_FIBERS)
// Saves the callee-saved registers on the current stack, stores its pointer in *save and continues
// on the stack `load`, where the same registers wait.
extern "C" void tenon_switch_stack(void** save, void* load);
asm(R"(
.text
.p2align 4
.type tenon_switch_stack, @function
tenon_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size tenon_switch_stack, . - tenon_switch_stack
)");
#endif

namespace tenon::emu {

// A suspended line of execution: a fiber, or the OS thread that launched.
class Context {
 public:
  // Makes `entry` start on this stack at the first switch. It must not return.
  void prepare(std::byte* stack, std::size_t bytes, void (*entry)()) {
    stack_ = stack;
    bytes_ = bytes;
#if defined(__SANITIZE_ADDRESS__)
    fake_stack_ = nullptr;
#endif
#if defined(TENON_PORTABLE_FIBERS)
    getcontext(&saved_);
    saved_.uc_stack.ss_sp = stack;
    saved_.uc_stack.ss_size = bytes;
    saved_.uc_link = nullptr;
    makecontext(&saved_, entry, 0);
#else
    // Six registers, the return address, and one more word: a function starts 8 bytes off 16.
    auto top = reinterpret_cast<std::uintptr_t>(stack + bytes) & ~std::uintptr_t{15};
    auto** words = reinterpret_cast<void**>(top) - 8;
    for (int i = 0; i < 8; ++i) words[i] = nullptr;
    words[6] = reinterpret_cast<void*>(entry);
    pointer_ = words;
#endif
  }

  // Continues `to`; returns when somebody continues this context. `ends`: nobody ever will.
  void switch_to(Context& to, [[maybe_unused]] bool ends = false) {
#if defined(__SANITIZE_ADDRESS__)
    from_ = this;
    __sanitizer_start_switch_fiber(ends ? nullptr : &fake_stack_, to.stack_, to.bytes_);
#endif
#if defined(TENON_PORTABLE_FIBERS)
    swapcontext(&saved_, &to.saved_);
#else
    tenon_switch_stack(&pointer_, to.pointer_);
#endif
    arrived(*this);
  }

  // First thing on a new context, so that the sanitizer knows the stack.
  static void arrived([[maybe_unused]] Context& here) {
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom = nullptr;
    std::size_t bytes = 0;
    __sanitizer_finish_switch_fiber(here.fake_stack_, &bottom, &bytes);
    if (from_->stack_ == nullptr) {  // the OS thread's own stack is only known now
      from_->stack_ = bottom;
      from_->bytes_ = bytes;
    }
#endif
  }

 private:
  const void* stack_ = nullptr;
  std::size_t bytes_ = 0;
#if defined(TENON_PORTABLE_FIBERS)
  ucontext_t saved_{};
#else
  void* pointer_ = nullptr;
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack_ = nullptr;
  static inline thread_local Context* from_ = nullptr;
#endif
};

}  // namespace tenon::emu
