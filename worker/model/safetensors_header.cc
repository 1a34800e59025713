// The pure half of safetensors.h: headers and indexes.
#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/model/safetensors.h"

namespace moebius {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxDimensions = 32;
constexpr size_t kMaxTensors = 16 << 20;

struct TypeName {
  std::string_view name;
  int64_t bits;
  TensorType type;
};
constexpr std::array<TypeName, 20> kTypes = {{
    {"BF16", 16, TensorType::kBf16},    {"F16", 16, TensorType::kF16},
    {"F32", 32, TensorType::kF32},      {"BOOL", 8, TensorType::kOther},
    {"U8", 8, TensorType::kOther},      {"I8", 8, TensorType::kOther},
    {"U16", 16, TensorType::kOther},    {"I16", 16, TensorType::kOther},
    {"U32", 32, TensorType::kOther},    {"I32", 32, TensorType::kOther},
    {"U64", 64, TensorType::kOther},    {"I64", 64, TensorType::kOther},
    {"F64", 64, TensorType::kOther},    {"C64", 64, TensorType::kOther},
    {"F8_E4M3", 8, TensorType::kOther}, {"F8_E5M2", 8, TensorType::kOther},
    {"F8_E8M0", 8, TensorType::kOther}, {"F6_E2M3", 6, TensorType::kOther},
    {"F6_E3M2", 6, TensorType::kOther}, {"F4", 4, TensorType::kOther},
}};

// Names go into messages: short, and printable.
std::string Show(std::string_view text) {
  std::string shown;
  for (const char c : text.substr(0, 128)) {
    shown += c >= 0x20 && c < 0x7f ? c : '?';
  }
  if (text.size() > 128) shown += "...";
  return absl::StrCat("'", shown, "'");
}

absl::Status Bad(std::string_view file, std::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(file), ": ", std::string(what)));
}

// Takes the events of a header and holds what they say, so that neither a
// deeply nested nor a repetitive header costs more than its own size.
class HeaderReader {
 public:
  explicit HeaderReader(std::string_view file) : file_(file) {}

  absl::Status status() const { return status_; }
  std::vector<TensorInfo> TakeTensors() { return std::move(tensors_); }

  // nlohmann's SAX interface; false stops the parser.
  bool null() { return Value("null"); }
  bool boolean(bool) { return Value("a boolean"); }
  bool number_integer(int64_t) { return Value("a negative number"); }
  bool number_float(double, const std::string&) { return Value("a fraction"); }
  bool binary(std::vector<uint8_t>&) { return Value("binary data"); }

  bool number_unsigned(uint64_t value) {
    if (place_ != Place::kShape && place_ != Place::kOffsets) {
      return Value("a number");
    }
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Fail("has a number beyond 2^63 - 1");
    }
    std::vector<int64_t>& list =
        place_ == Place::kShape ? tensor_.shape : offsets_;
    const size_t limit = place_ == Place::kShape ? kMaxDimensions : 2;
    if (list.size() == limit) {
      return Fail(place_ == Place::kShape
                      ? absl::StrCat("has more than ", limit, " dimensions")
                      : std::string("data_offsets has more than 2 numbers"));
    }
    list.push_back(static_cast<int64_t>(value));
    return true;
  }

  bool string(std::string& value) {
    if (place_ == Place::kMetadata) return true;
    if (place_ != Place::kType) return Value("a string");
    tensor_.type_name = value;
    place_ = Place::kTensor;
    return true;
  }

  bool start_object(size_t) {
    switch (place_) {
      case Place::kStart:
        place_ = Place::kTop;
        return true;
      case Place::kTopValue:
        place_ = is_metadata_ ? Place::kMetadata : Place::kTensor;
        return true;
      default:
        return Value("an object");
    }
  }

  bool key(std::string& name) {
    switch (place_) {
      case Place::kTop:
        return TopKey(name);
      case Place::kMetadata:
        return true;
      default:
        return TensorKey(name);
    }
  }

  bool end_object() {
    if (place_ == Place::kTensor) return EndTensor();
    place_ = place_ == Place::kMetadata ? Place::kTop : Place::kEnd;
    return true;
  }

  bool start_array(size_t) {
    if (place_ == Place::kShapeValue) {
      place_ = Place::kShape;
    } else if (place_ == Place::kOffsetsValue) {
      place_ = Place::kOffsets;
    } else {
      return Value("a list");
    }
    return true;
  }

  bool end_array() {
    place_ = Place::kTensor;
    return true;
  }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) {
    status_ = Bad(file_, absl::StrCat("header is not valid JSON (at byte ",
                                      position, ")"));
    return false;
  }

 private:
  // Where in the header the next event is.
  enum class Place {
    kStart,
    kTop,
    kTopValue,
    kMetadata,
    kTensor,
    kType,
    kShapeValue,
    kShape,
    kOffsetsValue,
    kOffsets,
    kEnd,
  };

  bool Fail(std::string_view what) {
    status_ =
        Bad(file_, in_tensor_ ? absl::StrCat("tensor ", Show(tensor_.name), " ",
                                             std::string(what))
                              : absl::StrCat("header ", std::string(what)));
    return false;
  }

  bool Value(std::string_view kind) {
    return Fail(
        absl::StrCat("has ", std::string(kind), " where none is allowed"));
  }

  bool TopKey(const std::string& name) {
    is_metadata_ = name == "__metadata__";
    in_tensor_ = !is_metadata_;
    tensor_ = TensorInfo{};
    tensor_.name = name;
    offsets_.clear();
    has_type_ = has_shape_ = has_offsets_ = false;
    place_ = Place::kTopValue;
    if (!names_.insert(name).second) return Fail("occurs twice");
    if (names_.size() > kMaxTensors) {
      return Fail(absl::StrCat("is beyond the ", kMaxTensors, " allowed"));
    }
    return true;
  }

  bool TensorKey(const std::string& name) {
    bool* seen = nullptr;
    if (name == "dtype") {
      seen = &has_type_;
      place_ = Place::kType;
    } else if (name == "shape") {
      seen = &has_shape_;
      place_ = Place::kShapeValue;
    } else if (name == "data_offsets") {
      seen = &has_offsets_;
      place_ = Place::kOffsetsValue;
    } else {
      return Fail(absl::StrCat("has the unknown key ", Show(name)));
    }
    if (*seen) return Fail(absl::StrCat("has the key ", name, " twice"));
    *seen = true;
    return true;
  }

  bool EndTensor() {
    if (!has_type_ || !has_shape_ || !has_offsets_) {
      return Fail("must have dtype, shape and data_offsets");
    }
    const auto type = std::find_if(
        kTypes.begin(), kTypes.end(),
        [&](const TypeName& known) { return known.name == tensor_.type_name; });
    if (type == kTypes.end()) {
      return Fail(
          absl::StrCat("has the unknown dtype ", Show(tensor_.type_name)));
    }
    tensor_.type = type->type;
    int64_t bits = type->bits;
    for (const int64_t size : tensor_.shape) {
      if (__builtin_mul_overflow(bits, size, &bits)) {
        return Fail("has a shape beyond 2^63 bits");
      }
    }
    if (offsets_.size() != 2 || offsets_[0] > offsets_[1]) {
      return Fail("data_offsets must be [begin, end], begin <= end");
    }
    tensor_.begin = offsets_[0];
    tensor_.end = offsets_[1];
    if (bits % 8 != 0 || bits / 8 != tensor_.end - tensor_.begin) {
      return Fail(absl::StrCat("has ", tensor_.end - tensor_.begin,
                               " bytes of data, but dtype and shape make ",
                               bits / 8));
    }
    tensors_.push_back(std::move(tensor_));
    in_tensor_ = false;
    place_ = Place::kTop;
    return true;
  }

  std::string_view file_;
  absl::Status status_;
  Place place_ = Place::kStart;
  bool is_metadata_ = false;
  bool in_tensor_ = false;
  bool has_type_ = false, has_shape_ = false, has_offsets_ = false;
  TensorInfo tensor_;
  std::vector<int64_t> offsets_;
  std::vector<TensorInfo> tensors_;
  std::unordered_set<std::string> names_;
};

bool IsPlainFileName(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == name.npos;
}

// Takes the events of an index: the strings of "weight_map". What else is there
// is passed over, at no cost but time.
class IndexReader {
 public:
  explicit IndexReader(std::string_view file) : file_(file) {}

  absl::Status status() const { return status_; }
  bool has_map() const { return has_map_; }
  std::unordered_map<std::string, std::string> TakeFiles() {
    return std::move(files_);
  }

  // nlohmann's SAX interface; false stops the parser.
  bool null() { return Other(); }
  bool boolean(bool) { return Other(); }
  bool number_integer(int64_t) { return Other(); }
  bool number_unsigned(uint64_t) { return Other(); }
  bool number_float(double, const std::string&) { return Other(); }
  bool binary(std::vector<uint8_t>&) { return Other(); }

  bool string(std::string& value) {
    if (!InMap()) return Other();
    if (!IsPlainFileName(value)) {
      return Fail(absl::StrCat(Show(value), " of tensor ", Show(name_),
                               " is not a plain file name"));
    }
    if (!files_.emplace(name_, value).second) {
      return Fail(absl::StrCat("tensor ", Show(name_), " occurs twice"));
    }
    return true;
  }
  bool key(std::string& name) {
    if (depth_ == 1) {
      map_is_next_ = name == "weight_map";
      if (map_is_next_ && has_map_) return Fail("occurs twice");
      has_map_ = has_map_ || map_is_next_;
    } else if (InMap()) {
      name_ = name;
    }
    return true;
  }
  bool start_object(size_t) {
    if (InMap()) return Other();
    ++depth_;
    return true;
  }
  bool start_array(size_t) {
    if (depth_ <= 1 && (depth_ == 0 || map_is_next_)) return Other();
    return start_object(0);
  }
  bool end_object() {
    --depth_;
    return true;
  }
  bool end_array() { return end_object(); }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) {
    status_ =
        Bad(file_, absl::StrCat("not valid JSON (at byte ", position, ")"));
    return false;
  }

 private:
  bool InMap() const { return depth_ == 2 && map_is_next_; }
  bool Fail(std::string_view what) {
    status_ = Bad(file_, absl::StrCat("weight_map: ", std::string(what)));
    return false;
  }
  // A value that is no string of the map, nor an object that may hold it.
  bool Other() {
    if (InMap()) {
      return Fail(absl::StrCat(Show(name_), " is not mapped to a file name"));
    }
    if (depth_ == 0 || (depth_ == 1 && map_is_next_)) {
      return Fail("missing, or no object");
    }
    return true;
  }

  std::string_view file_;
  absl::Status status_;
  int64_t depth_ = 0;
  bool map_is_next_ = false;  // at depth 1 the value, at depth 2 around us
  bool has_map_ = false;
  std::string name_;
  std::unordered_map<std::string, std::string> files_;
};

}  // namespace

absl::StatusOr<std::vector<TensorInfo>> ParseSafetensorsHeader(
    std::string_view header, int64_t data_bytes, std::string_view file_name) {
  if (header.size() > static_cast<size_t>(kMaxSafetensorsHeaderBytes)) {
    return Bad(file_name, absl::StrCat("header of ", header.size(),
                                       " bytes; allowed: at most ",
                                       kMaxSafetensorsHeaderBytes));
  }
  HeaderReader reader(file_name);
  if (!Json::sax_parse(header, &reader)) return reader.status();
  std::vector<TensorInfo> tensors = reader.TakeTensors();
  std::sort(tensors.begin(), tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) {
              return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
            });
  int64_t covered = 0;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.begin != covered) {
      return Bad(file_name,
                 absl::StrCat("tensor ", Show(tensor.name), " starts at byte ",
                              tensor.begin, ", ",
                              tensor.begin < covered ? "inside its neighbour"
                                                     : "leaving a hole",
                              " that ends at ",
                              tensor.begin < covered ? covered : tensor.begin));
    }
    if (tensor.end > data_bytes) {
      return Bad(file_name, absl::StrCat("cut off: tensor ", Show(tensor.name),
                                         " ends at byte ", tensor.end, " of ",
                                         data_bytes));
    }
    covered = tensor.end;
  }
  if (covered != data_bytes) {
    return Bad(file_name, absl::StrCat("tensors cover ", covered, " of ",
                                       data_bytes, " bytes of data"));
  }
  return tensors;
}

absl::StatusOr<std::unordered_map<std::string, std::string>>
ParseSafetensorsIndex(std::string_view json, std::string_view file_name) {
  if (json.size() > static_cast<size_t>(kMaxSafetensorsIndexBytes)) {
    return Bad(file_name, absl::StrCat(json.size(), " bytes; allowed: at most ",
                                       kMaxSafetensorsIndexBytes));
  }
  IndexReader reader(file_name);
  if (!Json::sax_parse(json, &reader)) return reader.status();
  if (!reader.has_map()) return Bad(file_name, "weight_map: missing");
  return reader.TakeFiles();
}

}  // namespace moebius
