// A handle serves one call at a time, in the process that has the call.
#pragma once

#include <atomic>

namespace rnnfast {

// The process that a handle's call runs in, by a number; 0 where there is no call. A forked child gets a number of its
// own, and calls of the parent's threads, which are not in it, were cut off: they keep the old one.
using Caller = std::atomic<unsigned>;

extern unsigned this_process;  // changes in a forked child, before that has a second thread

// Whether a call was cut off, which may have left what it was changing in any state.
inline bool is_cut_off(const Caller& caller) {
  const unsigned process = caller.load(std::memory_order_relaxed);
  return process && process != this_process;
}

// A handle, taken for the length of a call.
class Claim {
 public:
  // Throws Busy. A call that says what has to come `first` does not follow on one that was cut off; without it, a call
  // does, and sets everything anew that calls change.
  Claim(Caller& caller, const char* handle, const char* first) : caller_(caller) {
    if (!take_from(0)) follow(handle, first);
  }
  ~Claim() {
    if (follows_forks_) leave_forks();
    caller_.store(0, std::memory_order_release);
  }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;

  bool follows_cut_off() const { return follows_cut_off_; }

  // For a call that runs its caller's code: where this forks, the call goes on in the child as well.
  void follow_forks();

  // In a forked child.
  static void renumber();

 private:
  bool take_from(unsigned process) {
    return caller_.compare_exchange_strong(process, this_process, std::memory_order_acquire, std::memory_order_relaxed);
  }
  [[gnu::cold]] void follow(const char* handle, const char* first);  // a call that was cut off, or throws
  [[gnu::cold]] void leave_forks();

  Caller& caller_;
  bool follows_cut_off_ = false, follows_forks_ = false;
  Claim* outer_ = nullptr;  // the thread's claim before this one that follows forks
};

}  // namespace rnnfast
