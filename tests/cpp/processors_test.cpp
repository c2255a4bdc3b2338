// The limits of control groups, read from folders that look like those of a system.
#include "run/processors.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace {

using rnnfast::Index;

struct Case {
  const char* name;
  Index processors;
  std::vector<std::pair<const char*, const char*>> files;
};

constexpr const char* mount_2 = "30 23 0:26 / /cg rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
constexpr const char* mount_1 =
    "33 29 0:29 / /cg/memory rw - cgroup cgroup rw,memory\n"
    "34 29 0:30 / /cg/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n";

const Case cases[] = {
    {"no files at all", 0, {}},
    {"no limit", 0, {{"proc/self/mountinfo", mount_2}, {"proc/self/cgroup", "0::/\n"}, {"cg/cpu.max", "max 100000\n"}}},
    {"the root of a container, version 2",
     2,
     {{"proc/self/mountinfo", mount_2}, {"proc/self/cgroup", "0::/\n"}, {"cg/cpu.max", "200000 100000\n"}}},
    {"half a processor",
     1,
     {{"proc/self/mountinfo", mount_2}, {"proc/self/cgroup", "0::/\n"}, {"cg/cpu.max", "50000 100000\n"}}},
    {"two and a half",
     3,
     {{"proc/self/mountinfo", mount_2}, {"proc/self/cgroup", "0::/\n"}, {"cg/cpu.max", "250000 100000\n"}}},
    {"the group around it has less",
     2,
     {{"proc/self/mountinfo", mount_2},
      {"proc/self/cgroup", "0::/a.slice/b:c.scope\n"},
      {"cg/a.slice/cpu.max", "150000 100000\n"},
      {"cg/a.slice/b:c.scope/cpu.max", "400000 100000\n"}}},
    {"its own group has less",
     4,
     {{"proc/self/mountinfo", mount_2},
      {"proc/self/cgroup", "0::/a.slice/b:c.scope\n"},
      {"cg/a.slice/cpu.max", "max 100000\n"},
      {"cg/a.slice/b:c.scope/cpu.max", "400000 100000\n"}}},
    {"version 1",
     2,
     {{"proc/self/mountinfo", mount_1},
      {"proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/job\n"},
      {"cg/cpu/job/cpu.cfs_quota_us", "200000\n"},
      {"cg/cpu/job/cpu.cfs_period_us", "100000\n"},
      {"cg/cpu/x/cpu.cfs_quota_us", "100000\n"},
      {"cg/cpu/x/cpu.cfs_period_us", "100000\n"}}},
    {"no limit in version 1",
     0,
     {{"proc/self/mountinfo", mount_1},
      {"proc/self/cgroup", "4:cpu,cpuacct:/\n"},
      {"cg/cpu/cpu.cfs_quota_us", "-1\n"},
      {"cg/cpu/cpu.cfs_period_us", "100000\n"}}},
    {"a container of version 1, whose tree begins with its group",
     3,
     {{"proc/self/mountinfo", "34 29 0:30 /docker/abc /cg/cpu rw - cgroup cgroup rw,cpu\n"},
      {"proc/self/cgroup", "4:cpu:/docker/abc\n"},
      {"cg/cpu/cpu.cfs_quota_us", "300000\n"},
      {"cg/cpu/cpu.cfs_period_us", "100000\n"}}},
    {"both versions",
     1,
     {{"proc/self/mountinfo", "30 23 0:26 / /cg rw - cgroup2 cgroup2 rw\n34 29 0:30 / /v1 rw - cgroup cgroup rw,cpu\n"},
      {"proc/self/cgroup", "4:cpu:/\n0::/\n"},
      {"cg/cpu.max", "300000 100000\n"},
      {"v1/cpu.cfs_quota_us", "100000\n"},
      {"v1/cpu.cfs_period_us", "100000\n"}}},
    {"damaged files",
     0,
     {{"proc/self/mountinfo", "30 23 0:26 / /cg rw - cgroup2\n- - -\n30 23 0:26 / /cg rw - cgroup2 cgroup2 rw\n"},
      {"proc/self/cgroup", "0\n::\n0::\n"},
      {"cg/cpu.max", "many 0\n"}}},
};

}  // namespace

int main() {
  namespace fs = std::filesystem;
  const fs::path root = fs::temp_directory_path() / ("processors_test." + std::to_string(std::random_device()()));
  int failures = 0;
  for (const Case& one : cases) {
    for (const auto& [name, content] : one.files) {
      fs::create_directories((root / name).parent_path());
      std::ofstream(root / name) << content;
    }
    const Index found = rnnfast::granted_processors(root.string());
    fs::remove_all(root);
    if (found == one.processors) {
      std::printf("ok: %s\n", one.name);
    } else {
      std::fprintf(stderr, "processors: %s: expected %td, got %td\n", one.name, one.processors, found);
      ++failures;
    }
  }
  if (rnnfast::scheduled_processors() < 1) ++failures;
  return failures ? 1 : 0;
}
