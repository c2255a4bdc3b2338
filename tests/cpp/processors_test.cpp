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

  const auto cache = [&](const char* type, const char* size) {
    const fs::path folder = root / "sys/devices/system/cpu/cpu0/cache";
    const char* levels[][3] = {{"1", "Data", "48K"}, {"2", "Instruction", "64K"}, {"2", type, size}};
    for (int i = 0; i < 3; ++i) {
      const fs::path index = folder / ("index" + std::to_string(i));
      fs::create_directories(index);
      std::ofstream(index / "level") << levels[i][0] << '\n';
      std::ofstream(index / "type") << levels[i][1] << '\n';
      std::ofstream(index / "size") << levels[i][2] << '\n';
    }
    const rnnfast::Index found = rnnfast::second_cache_level(root.string());
    fs::remove_all(root);
    return found;
  };
  const auto expect = [&](rnnfast::Index expected, rnnfast::Index found, const char* what) {
    if (found == expected) return;
    std::fprintf(stderr, "second cache level, %s: expected %td, got %td\n", what, expected, found);
    ++failures;
  };
  expect(2 << 20, cache("Unified", "2048K"), "K");
  expect(3 << 20, cache("Data", "3M"), "M");
  expect(0, cache("Unified", "much"), "damaged");
  expect(0, rnnfast::second_cache_level(root.string()), "no files");
  return failures ? 1 : 0;
}
