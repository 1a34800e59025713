#include "tests/simulation/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <utility>
#include <vector>

#include "common/base/check.h"

namespace moebius::simulation {
namespace {

Fiber* running = nullptr;
int alive = 0;

std::vector<std::byte*>& Spares() {
  static auto* const spares = new std::vector<std::byte*>;
  return *spares;
}

std::byte* TakeStack(size_t size_bytes) {
  std::vector<std::byte*>& spares = Spares();
  if (!spares.empty()) {
    std::byte* const stack = spares.back();
    spares.pop_back();
    return stack;
  }
  const size_t guard = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  void* const range =
      ::mmap(nullptr, size_bytes + guard, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(range != MAP_FAILED);
  CHECK(::mprotect(range, guard, PROT_NONE) == 0);
  return static_cast<std::byte*>(range) + guard;
}

}  // namespace

Fiber::Fiber(std::function<void()> body)
    : body_(std::move(body)), stack_(TakeStack(kStackBytes)) {
  ++alive;
}

Fiber::~Fiber() {
  CHECK(!started_ || done_);
  Spares().push_back(stack_);
  --alive;
}

int Fiber::num_alive() { return alive; }

void Fiber::Main() {
  Fiber* const self = running;
  self->body_();
  self->done_ = true;
  Yield();
  CHECK(false);
}

void Fiber::Resume() {
  CHECK(running != this && !done_);
  if (!started_) {
    started_ = true;
    CHECK(::getcontext(&inside_) == 0);
    inside_.uc_stack.ss_sp = stack_;
    inside_.uc_stack.ss_size = kStackBytes;
    inside_.uc_link = nullptr;
    ::makecontext(&inside_, &Fiber::Main, 0);
  }
  resumer_ = std::exchange(running, this);
  CHECK(::swapcontext(&outside_, &inside_) == 0);
}

void Fiber::Yield() {
  Fiber* const self = running;
  CHECK(self != nullptr);
  running = self->resumer_;
  CHECK(::swapcontext(&self->inside_, &self->outside_) == 0);
}

}  // namespace moebius::simulation
