// Threads that keep to cores of their own for a while.
#pragma once

#include <pthread.h>
#include <sched.h>

#include <optional>
#include <utility>
#include <vector>

namespace moebius {

// Share `share` of `num_shares` of the CPUs in `allowed`: in order, none in two
// shares, their sizes at most one apart. nullopt when there are fewer CPUs than
// shares. REQUIRES: 0 <= share < num_shares.
std::optional<cpu_set_t> CoreShare(const cpu_set_t& allowed, int share,
                                   int num_shares);

// CoreBinding
//
// Holds threads that run at the same time, in this process and others, apart:
// thread i stays on share first_share + i of num_shares of the CPUs that it may
// use (CoreShare), until the binding ends and it may use them all again. The
// others take part by doing the same with other shares. Not for long: the
// kernel cannot move a bound thread away from another one that wants its core.
//
// Where there are fewer CPUs than shares, or the kernel says no, threads are
// left as they are: it is an advantage, never a need.
// Cost: two system calls a thread at either end, and a move where a thread was
// elsewhere.
class CoreBinding {
 public:
  // REQUIRES: the threads outlive this.
  CoreBinding(const std::vector<pthread_t>& threads, int first_share,
              int num_shares);
  ~CoreBinding();
  CoreBinding(const CoreBinding&) = delete;
  CoreBinding& operator=(const CoreBinding&) = delete;

 private:
  std::vector<std::pair<pthread_t, cpu_set_t>> before_;
};

}  // namespace moebius
