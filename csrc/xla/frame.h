// What XLA's foreign function interface hands to a function: a frame of inputs, outputs and attributes, in C structs.
//
// These are the parts that are read here, declared anew, so that no header of XLA is needed. They lie alike in versions
// 0.1 to 0.3 of the interface. Structs begin with their size and a list of extensions; XLA appends to them, and counts
// that in the version.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rnnfast::xla {

struct Extension {
  std::size_t size;
  int kind;  // 1: XLA asks for a Metadata, and for nothing else
  Extension* next;
};

constexpr int asks_for_metadata = 1;

struct Head {
  std::size_t size;
  Extension* extensions;
};

struct Version {
  Head head;
  int major, minor;
};

// What XLA wants to know of a function before it takes it.
struct Metadata {
  std::size_t size;
  Version version;  // of the interface that the function was written for
  std::uint32_t traits;
};

struct MetadataExtension {
  Extension extension;
  Metadata* metadata;
};

struct Error;  // XLA's own

enum class ErrorCode : int { invalid_argument = 3, resource_exhausted = 8, unimplemented = 12 };

struct ErrorArguments {
  Head head;
  const char* message;
  ErrorCode code;
};

// XLA's table of functions, of which the first is called here.
struct Functions {
  Head head;
  Version version;
  const void* internal;
  Error* (*create_error)(ErrorArguments*);
};

// Of elements, as XLA numbers them.
enum class Type : int { boolean = 1, uint8 = 6, float32 = 11, float64 = 12 };

// A dense array, in row-major order.
struct Array {
  Head head;
  Type type;
  void* data;
  std::int64_t rank;
  std::int64_t* sizes;
};

struct Text {
  const char* data;
  std::size_t size;
};

struct Scalar {
  Type type;
  void* value;
};

enum class AttributeKind : int { scalar = 3, text = 4 };

struct Arrays {
  Head head;
  std::int64_t count;
  int* kinds;  // all 1, for arrays
  void** arrays;
};

struct Attributes {
  Head head;
  std::int64_t count;
  AttributeKind* kinds;
  Text** names;
  void** values;
};

struct Frame {
  Head head;
  const Functions* functions;
  void* context;
  int stage;
  Arrays inputs, outputs;
  Attributes attributes;
};

constexpr int stage_of_execution = 3;

// A function as XLA calls it, from threads of its own and without the GIL. Null: all went well.
using Handler = Error*(Frame*);

extern Handler forward, backward;

}  // namespace rnnfast::xla
