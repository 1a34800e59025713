#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstdint>
#include <utility>

#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "coordinator/text/pretokenizer.h"
#include "coordinator/text/utf8.h"

namespace moebius {
namespace {

// Bounds of one match. A published pattern needs a few steps a character; the
// longest run of blanks that a text may hold must fit.
constexpr uint32_t kMatchLimit = 64u << 20;
constexpr uint32_t kDepthLimit = 1u << 20;
constexpr uint32_t kHeapLimitKib = 64u << 10;
// Used only when the 32 KiB on the machine stack do not do.
constexpr size_t kJitStackStartBytes = 64u << 10;
constexpr size_t kJitStackMaxBytes = 8u << 20;

template <auto kFree>
struct Freer {
  template <typename T>
  void operator()(T* p) const {
    kFree(p);
  }
};
using Code = std::unique_ptr<pcre2_code, Freer<&pcre2_code_free>>;
using MatchData =
    std::unique_ptr<pcre2_match_data, Freer<&pcre2_match_data_free>>;
using MatchContext =
    std::unique_ptr<pcre2_match_context, Freer<&pcre2_match_context_free>>;
using JitStack = std::unique_ptr<pcre2_jit_stack, Freer<&pcre2_jit_stack_free>>;

std::string ErrorMessage(int code) {
  PCRE2_UCHAR buffer[256];
  if (pcre2_get_error_message(code, buffer, sizeof(buffer)) < 0) {
    return Cat("PCRE2 error ", code);
  }
  return reinterpret_cast<const char*>(buffer);
}

absl::StatusOr<MatchContext> MakeContext() {
  MatchContext context(pcre2_match_context_create(nullptr));
  if (context == nullptr) {
    return absl::ResourceExhaustedError("no memory for a regular expression");
  }
  pcre2_set_match_limit(context.get(), kMatchLimit);
  pcre2_set_depth_limit(context.get(), kDepthLimit);
  pcre2_set_heap_limit(context.get(), kHeapLimitKib);
  return context;
}

// What one pass over one text needs.
class Matcher {
 public:
  static absl::StatusOr<Matcher> Create(const pcre2_code* code, bool jit) {
    MatchData data(pcre2_match_data_create(1, nullptr));
    if (data == nullptr) {
      return absl::ResourceExhaustedError("no memory for a regular expression");
    }
    ASSIGN_OR_RETURN(MatchContext context, MakeContext());
    return Matcher(code, jit, std::move(data), std::move(context));
  }

  // Finds the first match at or after `start`: (begin, end), or (npos, npos).
  absl::StatusOr<std::pair<size_t, size_t>> Find(std::string_view text,
                                                 size_t start) {
    int rc = Match(text, start);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT && stack_ == nullptr) {
      stack_.reset(pcre2_jit_stack_create(kJitStackStartBytes,
                                          kJitStackMaxBytes, nullptr));
      if (stack_ != nullptr) {
        pcre2_jit_stack_assign(context_.get(), nullptr, stack_.get());
        rc = Match(text, start);
      }
    }
    if (rc == PCRE2_ERROR_NOMATCH) {
      return std::pair(std::string_view::npos, std::string_view::npos);
    }
    if (rc < 0) {
      return absl::ResourceExhaustedError(Cat(
          "the split pattern gave up at byte ", start, ": ", ErrorMessage(rc)));
    }
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(data_.get());
    return std::pair<size_t, size_t>(span[0], span[1]);
  }

 private:
  Matcher(const pcre2_code* code, bool jit, MatchData data,
          MatchContext context)
      : code_(code),
        jit_(jit),
        data_(std::move(data)),
        context_(std::move(context)) {}

  int Match(std::string_view text, size_t start) {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    // The text is known to be valid UTF-8. Without this PCRE2 would check all
    // the rest of it for every match.
    constexpr uint32_t kOptions = PCRE2_NO_UTF_CHECK;
    return jit_ ? pcre2_jit_match(code_, subject, text.size(), start, kOptions,
                                  data_.get(), context_.get())
                : pcre2_match(code_, subject, text.size(), start, kOptions,
                              data_.get(), context_.get());
  }

  const pcre2_code* code_;
  bool jit_;
  MatchData data_;
  MatchContext context_;
  JitStack stack_;
};

class Pcre2SplitPattern final : public SplitPattern {
 public:
  Pcre2SplitPattern(Code code, bool jit) : code_(std::move(code)), jit_(jit) {}

  absl::Status Split(
      std::string_view text,
      absl::FunctionRef<absl::Status(std::string_view)> piece) const override {
    if (text.empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(Matcher matcher, Matcher::Create(code_.get(), jit_));
    size_t reported = 0;
    const auto report = [&](size_t end) {
      if (end == reported) return absl::OkStatus();
      const std::string_view slice = text.substr(reported, end - reported);
      reported = end;
      return piece(slice);
    };
    for (size_t at = 0; at < text.size();) {
      ASSIGN_OR_RETURN(const auto match, matcher.Find(text, at));
      const auto [begin, end] = match;
      if (begin == std::string_view::npos) break;
      // \K and look-behind could report a match that begins before `at`.
      if (begin < reported || end < begin || end > text.size()) break;
      RETURN_IF_ERROR(report(begin));
      RETURN_IF_ERROR(report(end));
      // An empty match only cuts; the search goes on a character later.
      at = end;
      if (begin == end && at < text.size()) {
        at += ReadCodePoint(text.data() + at).size_bytes;
      }
    }
    return report(text.size());
  }

 private:
  Code code_;
  bool jit_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SplitPattern>> SplitPattern::Compile(
    std::string_view pattern) {
  ASSIGN_OR_RETURN(const std::string translated,
                   TranslateSplitPattern(pattern));
  int error = 0;
  PCRE2_SIZE offset = 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()),
                          translated.size(),
                          PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C,
                          &error, &offset, nullptr));
  if (code == nullptr) {
    return absl::InvalidArgumentError(
        Cat(ErrorMessage(error), ", at byte ", offset, " of ", translated));
  }
  // Where the machine forbids generated code PCRE2 interprets: slower, the
  // same matches.
  const bool jit = pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE) == 0;
  return std::make_unique<Pcre2SplitPattern>(std::move(code), jit);
}

}  // namespace moebius
