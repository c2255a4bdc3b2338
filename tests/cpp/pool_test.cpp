// The thread pool on its own, for ThreadSanitizer: a table of properties, each a function that requires what it says.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "run/threads.h"

#if __has_include(<sys/wait.h>)
#include <sys/wait.h>
#include <unistd.h>
#define HAS_FORK 1
#endif

namespace {

using rnnfast::Index;
using rnnfast::Outcome;
using rnnfast::run_parallel;
using rnnfast::Team;
using rnnfast::tell;
using rnnfast::wait_until;

constexpr Index most_threads = 4;

bool never() { return false; }

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "pool: expected that %s\n", what);
  std::exit(1);
}

// One region in which every member adds 1 to its own slot and, past a barrier, reads all slots: plain memory, so that
// a barrier that orders too little is a data race. Returns the size of the team.
Index add_and_look(Index threads) {
  std::vector<Index> slots(std::size_t(threads), 0);
  std::atomic<Index> members = 0, complete = 0, size = 0;
  const Outcome outcome = run_parallel(
      threads,
      [&](const Team& team) {
        members += 1;
        size = team.size;
        for (Index step = 1; step <= 20; ++step) {
          slots[std::size_t(team.rank)] += 1;
          if (!team.barrier(team)) return;
          Index sum = 0;
          for (Index slot : slots) sum += slot;
          if (sum == step * team.size) complete += 1;
          if (!team.barrier(team)) return;
        }
      },
      never);
  require(outcome == Outcome::finished, "a region that nobody interrupts says that it has finished");
  require(size >= 1 && size <= threads, "a team has between 1 and the wanted number of members");
  require(members == size, "each member runs the job once");
  require(complete == 20 * size, "after a barrier all see what all wrote before it");
  return size;
}

void a_region_has_the_team_that_was_asked_for() {
  for (Index repeat = 0; repeat < 50; ++repeat)
    for (Index threads : {1, 4, 2, 3})
      require(add_and_look(threads) == threads, "an idle pool gives as many threads as are wanted");
}

void concurrent_callers_all_finish() {
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([caller] {
      for (Index repeat = 0; repeat < 50; ++repeat) add_and_look(1 + (repeat + caller) % most_threads);
    });
  for (std::thread& caller : callers) caller.join();
}

void a_call_inside_a_region_runs_alone() {
  std::atomic<Index> alone = 0;
  run_parallel(
      most_threads,
      [&](const Team&) {
        if (add_and_look(most_threads) == 1) alone += 1;
      },
      never);
  require(alone == most_threads, "a call inside a region runs on its own thread");
  require(add_and_look(most_threads) == most_threads, "the pool is free again after nested calls");
}

// Whether the job asks at barriers or between them, the members leave together, and the next region is not affected.
void an_interrupted_region_ends() {
  for (const bool at_barrier : {true, false}) {
    std::vector<Index> steps(most_threads, 0);
    int asked = 0;
    const Outcome outcome = run_parallel(
        most_threads,
        [&](const Team& team) {
          while (at_barrier ? team.barrier(team) : !team.interrupted(team)) steps[std::size_t(team.rank)] += 1;
        },
        [&] { return ++asked == 100; });
    require(outcome == Outcome::interrupted, "an interrupted region says so");
    for (Index taken : steps) require(!at_barrier || taken == steps[0], "all members leave at the same barrier");
    require(add_and_look(most_threads) == most_threads, "the pool works after an interruption");
  }
}

// Between two barriers some may be told to stop and others not: they meet at the next one and leave together.
void questions_and_barriers_may_take_turns() {
  for (int region = 0; region < 300; ++region) {
    int asked = 0;
    const Outcome outcome = run_parallel(
        2,
        [](const Team& team) {
          while (team.barrier(team)) team.interrupted(team);
        },
        [&] { return ++asked == 2; });
    require(outcome == Outcome::interrupted, "an interrupted region says so");
  }
}

// Plain memory that goes from member to member, each of which waits for the one before: a wait that orders too little
// is a data race.
void a_member_waits_for_what_another_one_brings_about() {
  for (int region = 0; region < 50; ++region) {
    std::atomic<Index> turn = 0;
    Index sum = 0;
    const Outcome outcome = run_parallel(
        most_threads,
        [&](const Team& team) {
          for (Index round = 0; round < 20; ++round) {
            if (!wait_until(team, [&] { return turn.load() % team.size == team.rank; })) return;
            sum += 1;
            turn += 1;
            tell(team);
          }
        },
        never);
    require(outcome == Outcome::finished && sum == turn, "members that wait for each other's results see them");
  }
}

// Whoever waits for what never comes returns when rank 0 is told to stop, wherever that is.
void an_interruption_ends_a_wait() {
  for (const bool rank_0_waits : {true, false}) {
    int asked = 0;
    const Outcome outcome = run_parallel(
        most_threads,
        [&](const Team& team) {
          if (rank_0_waits || team.rank > 0)
            require(!wait_until(team, [] { return false; }), "a wait that is interrupted says so");
          while (!team.interrupted(team)) std::this_thread::yield();
        },
        [&] { return ++asked == 3; });
    require(outcome == Outcome::interrupted, "an interrupted region says so");
    require(add_and_look(most_threads) == most_threads, "the pool works after an interruption");
  }
}

void the_number_of_threads_is_kept() {
  const Index before = rnnfast::get_num_threads();
  require(before >= 1, "there is at least one thread");
  rnnfast::set_num_threads(3);
  require(rnnfast::get_num_threads() == 3, "the number of threads is the one that was set");
  rnnfast::set_num_threads(before);
}

#if HAS_FORK
void a_forked_child_starts_with_a_fresh_pool() {
  require(add_and_look(most_threads) == most_threads, "the parent's pool has workers");
  const pid_t child = fork();
  require(child >= 0, "the process can fork");
  if (child == 0) {
    add_and_look(most_threads);
    _exit(add_and_look(most_threads) == most_threads ? 0 : 1);
  }
  int status = 0;
  require(waitpid(child, &status, 0) == child, "the child ends");
  require(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child's pool works");
  require(add_and_look(most_threads) == most_threads, "the parent's pool works on");
}

// Wherever rank 0 is when `poll` forks: at a barrier, between two, waiting for a result or for the end.
void a_child_that_poll_forks_abandons_the_region() {
  for (const bool at_barrier : {true, false})
    for (int asked_before : {0, 1, 50}) {
      std::atomic<bool> forked = false;
      int asked = 0;
      pid_t child = -1;
      const Outcome outcome = run_parallel(
          most_threads,
          [&](const Team& team) {
            for (int i = 0; i < 100; ++i)
              if (at_barrier ? !team.barrier(team) : team.interrupted(team)) return;
            while (team.rank > 0 && !forked) std::this_thread::yield();
          },
          [&] {
            if (asked++ == asked_before) child = fork(), forked = true;
            return false;
          });
      if (child == 0) _exit(outcome == Outcome::abandoned && add_and_look(most_threads) == most_threads ? 0 : 1);
      require(outcome == Outcome::finished, "a fork does not concern the parent");
      int status = 0;
      require(waitpid(child, &status, 0) == child, "the child ends");
      require(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child knows that the region is the parent's");
    }
}
#endif

struct Property {
  const char* name;
  void (*holds)();
};

constexpr Property properties[] = {
    {"a region has the team that was asked for", a_region_has_the_team_that_was_asked_for},
    {"concurrent callers all finish", concurrent_callers_all_finish},
    {"a call inside a region runs alone", a_call_inside_a_region_runs_alone},
    {"an interrupted region ends", an_interrupted_region_ends},
    {"questions and barriers may take turns", questions_and_barriers_may_take_turns},
    {"a member waits for what another one brings about", a_member_waits_for_what_another_one_brings_about},
    {"an interruption ends a wait", an_interruption_ends_a_wait},
    {"the number of threads is kept", the_number_of_threads_is_kept},
#if HAS_FORK
    {"a forked child starts with a fresh pool", a_forked_child_starts_with_a_fresh_pool},
    {"a child that poll forks abandons the region", a_child_that_poll_forks_abandons_the_region},
#endif
};

}  // namespace

int main() {
  for (const Property& property : properties) {
    property.holds();
    std::printf("ok: %s\n", property.name);
  }
}
