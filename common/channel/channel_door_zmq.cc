#include "common/channel/channel_door_zmq.h"

#include <unistd.h>

#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/base/cat.h"
#include "common/base/logging.h"
#include "common/base/printable.h"

namespace moebius {
namespace {

constexpr char kEndpoint[] = "inproc://zeromq.zap.01";
// Of a question: version, number, domain, address, identity, mechanism, then
// what the mechanism adds.
constexpr size_t kMinFrames = 6;
constexpr size_t kMaxFrames = 16;
constexpr size_t kNumberFrame = 1;
constexpr size_t kAddressFrame = 3;
constexpr size_t kMechanismFrame = 5;
constexpr size_t kCredentialFrame = 6;
// Refusals are logged no more often than this.
constexpr std::chrono::seconds kLogGap(10);

}  // namespace

ChannelDoor::ChannelDoor(zmq::context_t& context, Judge judge)
    : socket_(context, zmq::socket_type::rep), judge_(std::move(judge)) {
  socket_.set(zmq::sockopt::linger, 0);
  socket_.bind(kEndpoint);
  thread_ = std::thread([this] { Serve(); });
}

ChannelDoor::~ChannelDoor() { thread_.join(); }

void ChannelDoor::Serve() {
  try {
    for (;;) AnswerOne();
  } catch (const zmq::error_t& e) {
    if (e.num() != ETERM) LogError("control channel: ", e.what());
  }
  socket_.close();
}

void ChannelDoor::AnswerOne() {
  std::vector<std::string> frames;
  for (bool more = true; more;) {
    zmq::message_t frame;
    if (!socket_.recv(frame)) return;
    more = frame.more();
    if (frames.size() < kMaxFrames) frames.push_back(frame.to_string());
  }
  if (frames.size() < kMinFrames) frames.resize(kMinFrames);  // refused below
  const Verdict verdict = JudgeAndLog(
      {frames[kAddressFrame], frames[kMechanismFrame],
       frames.size() > kCredentialFrame ? frames[kCredentialFrame] : ""});
  const std::string_view parts[] = {"1.0", frames[kNumberFrame], verdict.code,
                                    "", verdict.rank};
  for (std::string_view part : parts) {
    socket_.send(zmq::buffer(part), zmq::send_flags::sndmore);
  }
  socket_.send(zmq::message_t(), zmq::send_flags::none);  // no properties
}

ChannelDoor::Verdict ChannelDoor::JudgeAndLog(const Question& question) {
  const auto rank = judge_(question);
  if (rank.ok() && rank->has_value()) return {"200", Cat(**rank)};
  ++num_refused_;
  const auto now = std::chrono::steady_clock::now();
  if (num_refused_ == 1 || now - last_logged_ > kLogGap) {
    last_logged_ = now;
    LogWarn("control channel: refused ", Printable(question.address),
            rank.ok() ? "" : ": ", rank.status().message(), " (", num_refused_,
            " so far)");
  }
  return {rank.ok() ? "400" : "300", ""};
}

absl::StatusOr<std::optional<Rank>> ChannelDoor::JudgeProcess(
    const Question& question, const WhoIs& who_is) {
  const std::vector<absl::string_view> parts =
      absl::StrSplit(AbslView(question.address), ':');
  uid_t uid = 0;
  pid_t pid = 0;
  const size_t n = parts.size();
  if (n < 4 || !absl::SimpleAtoi(parts[n - 3], &uid) ||
      !absl::SimpleAtoi(parts[n - 1], &pid) || pid <= 0 || uid != geteuid()) {
    return std::nullopt;
  }
  return who_is(pid);
}

std::optional<Rank> ChannelDoor::JudgeKey(
    const Question& question, const std::vector<std::string>& keys) {
  if (question.mechanism != "CURVE") return std::nullopt;
  for (size_t rank = 0; rank < keys.size(); ++rank) {
    if (!keys[rank].empty() && keys[rank] == question.credential) {
      return static_cast<Rank>(rank);
    }
  }
  return std::nullopt;
}

}  // namespace moebius
