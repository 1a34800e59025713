// Tells the thread sanitizer what the distribution's Abseil does.
//
// Its library is built without the sanitizer, so that Lock and Unlock order
// nothing in its eyes and all that a mutex guards looks like a race. In builds
// with the thread sanitizer every test is linked with this file and with
// `--wrap` for the functions below (tests/CMakeLists.txt): calls from our code
// come here, do what they did, and are noted as acquire and release of the
// object.
//
// The copies of an absl::Status count themselves in inline code up, and in the
// library down, so that one thread would seem to free what another still reads.
//
// Conditions run on whichever thread looks at them, inside the library and
// under the mutex, where the sanitizer cannot see that it is held: their reads
// are not looked at.
#include <atomic>
#include <cstdint>

#include "absl/status/internal/status_internal.h"

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
}

namespace {

class IgnoreReads {
 public:
  IgnoreReads() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__); }
  ~IgnoreReads() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
};

// absl::Time and absl::Duration are two words that are passed by value: 12
// bytes of integers.
struct TwoWords {
  int64_t high;
  uint32_t low;
};

// absl::Notification has its flag behind its mutex, which is one word; readers
// look at the flag in inline code, which the sanitizer does see.
void* FlagOf(const void* notification) {
  return static_cast<char*>(const_cast<void*>(notification)) + 8;
}

}  // namespace

// A function that acquires, one that releases, and one that does both.
#define ACQUIRES(name, object)                  \
  extern "C" void __real_##name(void* object);  \
  extern "C" void __wrap_##name(void* object) { \
    {                                           \
      IgnoreReads ignore;                       \
      __real_##name(object);                    \
    }                                           \
    __tsan_acquire(object);                     \
  }
#define TRIES(name)                             \
  extern "C" bool __real_##name(void* object);  \
  extern "C" bool __wrap_##name(void* object) { \
    const bool held = __real_##name(object);    \
    if (held) __tsan_acquire(object);           \
    return held;                                \
  }
#define RELEASES(name)                          \
  extern "C" void __real_##name(void* object);  \
  extern "C" void __wrap_##name(void* object) { \
    __tsan_release(object);                     \
    IgnoreReads ignore;                         \
    __real_##name(object);                      \
  }
// Waits for a condition: gives the mutex away and has it again.
#define AWAITS(name)                                                  \
  extern "C" void __real_##name(void* mutex, const void* condition);  \
  extern "C" void __wrap_##name(void* mutex, const void* condition) { \
    __tsan_release(mutex);                                            \
    {                                                                 \
      IgnoreReads ignore;                                             \
      __real_##name(mutex, condition);                                \
    }                                                                 \
    __tsan_acquire(mutex);                                            \
  }
#define AWAITS_UNTIL(name)                                          \
  extern "C" bool __real_##name(void* mutex, const void* condition, \
                                TwoWords until);                    \
  extern "C" bool __wrap_##name(void* mutex, const void* condition, \
                                TwoWords until) {                   \
    __tsan_release(mutex);                                          \
    bool met;                                                       \
    {                                                               \
      IgnoreReads ignore;                                           \
      met = __real_##name(mutex, condition, until);                 \
    }                                                               \
    __tsan_acquire(mutex);                                          \
    return met;                                                     \
  }

// absl::Mutex
ACQUIRES(_ZN4absl7debian35Mutex4LockEv, mutex)
RELEASES(_ZN4absl7debian35Mutex6UnlockEv)
TRIES(_ZN4absl7debian35Mutex7TryLockEv)
ACQUIRES(_ZN4absl7debian35Mutex10ReaderLockEv, mutex)
RELEASES(_ZN4absl7debian35Mutex12ReaderUnlockEv)
TRIES(_ZN4absl7debian35Mutex13ReaderTryLockEv)
AWAITS(_ZN4absl7debian35Mutex5AwaitERKNS0_9ConditionE)
AWAITS(_ZN4absl7debian35Mutex8LockWhenERKNS0_9ConditionE)
AWAITS_UNTIL(
    _ZN4absl7debian35Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE)
AWAITS_UNTIL(
    _ZN4absl7debian35Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE)

// absl::CondVar
extern "C" void __real__ZN4absl7debian37CondVar4WaitEPNS0_5MutexE(void* var,
                                                                  void* mutex);
extern "C" void __wrap__ZN4absl7debian37CondVar4WaitEPNS0_5MutexE(void* var,
                                                                  void* mutex) {
  __tsan_release(mutex);
  {
    IgnoreReads ignore;
    __real__ZN4absl7debian37CondVar4WaitEPNS0_5MutexE(var, mutex);
  }
  __tsan_acquire(mutex);
}

// absl::Notification
extern "C" void __real__ZN4absl7debian312Notification6NotifyEv(void* note);
extern "C" void __wrap__ZN4absl7debian312Notification6NotifyEv(void* note) {
  __tsan_release(FlagOf(note));
  __real__ZN4absl7debian312Notification6NotifyEv(note);
}
extern "C" void __real__ZNK4absl7debian312Notification19WaitForNotificationEv(
    const void* note);
extern "C" void __wrap__ZNK4absl7debian312Notification19WaitForNotificationEv(
    const void* note) {
  __real__ZNK4absl7debian312Notification19WaitForNotificationEv(note);
  __tsan_acquire(FlagOf(note));
}
#define NOTIFIED_BY(name)                                           \
  extern "C" bool __real_##name(const void* note, TwoWords until);  \
  extern "C" bool __wrap_##name(const void* note, TwoWords until) { \
    const bool notified = __real_##name(note, until);               \
    if (notified) __tsan_acquire(FlagOf(note));                     \
    return notified;                                                \
  }
NOTIFIED_BY(
    _ZNK4absl7debian312Notification31WaitForNotificationWithDeadlineENS0_4TimeE)
NOTIFIED_BY(
    _ZNK4absl7debian312Notification30WaitForNotificationWithTimeoutENS0_8DurationE)

// absl::BlockingCounter
extern "C" bool __real__ZN4absl7debian315BlockingCounter14DecrementCountEv(
    void* counter);
extern "C" bool __wrap__ZN4absl7debian315BlockingCounter14DecrementCountEv(
    void* counter) {
  __tsan_release(counter);
  return __real__ZN4absl7debian315BlockingCounter14DecrementCountEv(counter);
}
ACQUIRES(_ZN4absl7debian315BlockingCounter4WaitEv, counter)

// absl::Status: a pointer to what the copies share, plus 1. Counted down here,
// where the sanitizer sees it; the library gets the last copy alone, and frees
// it.
extern "C" void __real__ZN4absl7debian36Status15UnrefNonInlinedEm(
    uintptr_t status);
extern "C" void __wrap__ZN4absl7debian36Status15UnrefNonInlinedEm(
    uintptr_t status) {
  std::atomic<int32_t>& copies =
      reinterpret_cast<absl::status_internal::StatusRep*>(status - 1)->ref;
  if (copies.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  copies.store(1, std::memory_order_relaxed);
  __real__ZN4absl7debian36Status15UnrefNonInlinedEm(status);
}
