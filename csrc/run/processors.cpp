#include "run/processors.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace rnnfast {

namespace {

using Words = std::vector<std::string>;

Words split(const std::string& text, char separator) {
  Words words;
  std::istringstream stream(text);
  for (std::string word; std::getline(stream, word, separator);) words.push_back(word);
  return words;
}

bool contains(const Words& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// quota / period, rounded up; 0 where they are no positive numbers, as "max" and -1 are not.
Index processors_of(const std::string& quota, const std::string& period) {
  Index q = 0, p = 0;
  std::istringstream(quota) >> q;
  std::istringstream(period) >> p;
  return q > 0 && p > 0 ? (q - 1) / p + 1 : 0;
}

Index processors_of_group(const std::string& folder, bool version_2) {
  if (!version_2)
    return processors_of(first_line(folder + "/cpu.cfs_quota_us"), first_line(folder + "/cpu.cfs_period_us"));
  const Words limit = split(first_line(folder + "/cpu.max"), ' ');
  return limit.size() == 2 ? processors_of(limit[0], limit[1]) : 0;
}

// The path of the group that this process is in, as /proc/self/cgroup has it: lines "0::/path" of version 2,
// "4:cpu,cpuacct:/path" of version 1. Empty where there is none.
std::string group_path(const std::string& root, bool version_2) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const Words fields = split(line, ':');
    if (fields.size() < 3) continue;
    if (version_2 ? fields[0] == "0" && fields[1].empty() : contains(split(fields[1], ','), "cpu"))
      return line.substr(fields[0].size() + fields[1].size() + 2);
  }
  return "";
}

// The least limit of a group and of those around it, up to where their tree is mounted.
Index least_limit(const std::string& mount, std::string path, bool version_2) {
  Index least = 0;
  for (;;) {
    const Index n = processors_of_group(mount + path, version_2);
    if (n && (!least || n < least)) least = n;
    const std::size_t slash = path.rfind('/');
    if (slash == std::string::npos) return least;
    path.erase(slash);
  }
}

}  // namespace

Index scheduled_processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(CPU_COUNT(&set), 1);
#endif
  static const unsigned n = std::thread::hardware_concurrency();
  return n ? Index(n) : 1;
}

Index granted_processors(const std::string& root) {
  Index least = 0;
  std::ifstream mounts(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    // id parent device root mount options [more] - type source options
    const Words fields = split(line, ' ');
    const auto dash = std::find(fields.begin(), fields.end(), "-");
    if (fields.size() < 5 || std::distance(dash, fields.end()) < 4) continue;
    const bool version_2 = dash[1] == "cgroup2";
    if (!version_2 && !(dash[1] == "cgroup" && contains(split(dash[3], ','), "cpu"))) continue;
    // In a container, the mounted tree may begin with the process's own group.
    std::string path = group_path(root, version_2);
    const std::string& top = fields[3];
    if (top != "/") path = path.compare(0, top.size(), top) == 0 ? path.substr(top.size()) : "";
    if (path == "/") path.clear();
    const Index n = least_limit(root + fields[4], path, version_2);
    if (n && (!least || n < least)) least = n;
  }
  return least;
}

Index second_cache_level(const std::string& root) {
#if defined(__APPLE__)
  std::int64_t bytes = 0;
  std::size_t size = sizeof(bytes);
  for (const char* name : {"hw.perflevel0.l2cachesize", "hw.l2cachesize"})
    if (root.empty() && sysctlbyname(name, &bytes, &size, nullptr, 0) == 0 && bytes > 0) return Index(bytes);
#endif
  for (int i = 0;; ++i) {
    const std::string cache = root + "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(i);
    const std::string level = first_line(cache + "/level");
    if (level.empty()) return 0;
    if (level != "2" || first_line(cache + "/type") == "Instruction") continue;
    Index size = 0;
    char unit = 0;
    std::istringstream(first_line(cache + "/size")) >> size >> unit;  // "512K"
    const Index bytes = unit == 'K' ? 1 << 10 : unit == 'M' ? 1 << 20 : 1;
    return size > 0 && size < (1 << 20) ? size * bytes : 0;
  }
}

}  // namespace rnnfast
