// A call that can be left in the middle and gone on with later, on one thread.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <functional>

namespace moebius::simulation {

// Fiber
//
// Resume() runs `body` until it calls Yield() or returns. A body may throw;
// what it throws must not leave it.
// Stacks have a guard page below them and are used again by later fibers.
// Threading: all fibers on one thread. A fiber may resume another, to which it
// is the outside then.
class Fiber {
 public:
  explicit Fiber(std::function<void()> body);
  // REQUIRES: never resumed, or done.
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void Resume();
  bool started() const { return started_; }
  bool done() const { return done_; }

  // Back to whoever resumed the running fiber.
  static void Yield();

  // Fibers that exist, in the whole program.
  static int num_alive();

 private:
  static constexpr size_t kStackBytes = 512 << 10;
  static void Main();

  std::function<void()> body_;
  std::byte* stack_;
  ucontext_t inside_{};
  ucontext_t outside_{};
  Fiber* resumer_ = nullptr;  // the fiber that is outside; null: none is
  bool started_ = false;
  bool done_ = false;
};

}  // namespace moebius::simulation
