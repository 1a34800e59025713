// A process of the group's user that is none of the group's, at the control
// socket: `hostile_peer SOCKET NUM_RANKS`, the path of a Unix socket or
// IPV4:PORT.
//
// It sends what is not the protocol, calls itself by every name that a worker
// has, had, will or could never have, and says under each of them whatever a
// worker can say, and what no worker would. Ends with 0 if it was never let in
// and heard nothing; says what it did on standard output.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>
#include <zmq.hpp>

#include "common/base/ids.h"
#include "common/wire/wire.h"

namespace moebius {
namespace {

constexpr int kPatienceMs = 30'000;
constexpr size_t kOversizeBytes = wire::kMaxMessageBytes + 8;

struct Tally {
  int refused = 0;
  int let_in = 0;
  int heard = 0;
  int silent = 0;  // neither, in time
};

// ---- not the protocol -------------------------------------------------------

bool IsPath(const std::string& where) { return where.starts_with('/'); }

class RawSocket {
 public:
  explicit RawSocket(const std::string& where)
      : fd_(socket(IsPath(where) ? AF_UNIX : AF_INET,
                   SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un path{};
    sockaddr_in tcp{};
    if (IsPath(where)) {
      path.sun_family = AF_UNIX;
      std::memcpy(path.sun_path, where.data(), where.size());
    } else {
      const size_t colon = where.find(':');
      tcp.sin_family = AF_INET;
      tcp.sin_port =
          htons(static_cast<uint16_t>(std::atoi(where.c_str() + colon + 1)));
      inet_pton(AF_INET, where.substr(0, colon).c_str(), &tcp.sin_addr);
    }
    const timeval patience{kPatienceMs / 1000, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    const int failed =
        IsPath(where)
            ? connect(fd_, reinterpret_cast<sockaddr*>(&path), sizeof path)
            : connect(fd_, reinterpret_cast<sockaddr*>(&tcp), sizeof tcp);
    if (failed != 0) {
      std::perror("connect");
      std::exit(3);
    }
  }
  ~RawSocket() { close(fd_); }
  RawSocket(const RawSocket&) = delete;

  // False if the other end takes no more.
  bool Send(const std::string& bytes) {
    size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t n =
          send(fd_, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
      if (n <= 0) return false;
      done += static_cast<size_t>(n);
    }
    return true;
  }
  bool HungUp() {
    char bytes[4096];
    for (ssize_t n; (n = recv(fd_, bytes, sizeof bytes, 0)) != 0;) {
      if (n < 0) return errno == ECONNRESET;
    }
    return true;
  }

 private:
  const int fd_;
};

// The first bytes of ZMTP 3.`minor` with the mechanism NULL.
std::string Greeting(char minor) {
  std::string greeting(64, '\0');
  greeting[0] = '\xff';
  greeting[9] = '\x7f';
  greeting[10] = 3;
  greeting[11] = minor;
  greeting.replace(12, 4, "NULL");
  return greeting;
}

std::string Property(const std::string& name, const std::string& value) {
  std::string out(1, static_cast<char>(name.size()));
  out += name;
  for (int shift = 24; shift >= 0; shift -= 8) {
    out += static_cast<char>(value.size() >> shift);
  }
  return out + value;
}

std::string Ready(const std::string& identity) {
  const std::string body = std::string("\5READY") +
                           Property("Socket-Type", "DEALER") +
                           Property("Identity", identity);
  return std::string(1, '\4') + static_cast<char>(body.size()) + body;
}

// The header of a message of `size` bytes.
std::string LongFrame(uint64_t size) {
  std::string out(1, '\2');
  for (int shift = 56; shift >= 0; shift -= 8) {
    out += static_cast<char>(size >> shift);
  }
  return out;
}

void SendGarbage(const std::string& where, Tally* tally) {
  std::mt19937_64 random(11);
  std::string noise(4096, '\0');
  for (char& c : noise) c = static_cast<char>(random());
  const std::vector<std::string> texts = {
      noise,
      std::string(4096, '\0'),
      "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
      Greeting(0).substr(0, 11) + noise,
      Greeting(0) + noise,
      Greeting(1) + Ready("0.1") + noise,
      Greeting(0) + Ready("0.1") + LongFrame(kOversizeBytes) + noise,
      Greeting(0) + Ready("0.1") +
          LongFrame(std::numeric_limits<uint64_t>::max()) + noise,
      Greeting(0) + "\4\xff" + noise,
      // The versions before 3, which know no questions.
      std::string("\xff\0\0\0\0\0\0\0\4\x7f\1\6\0\3", 14) + "0.1" + noise,
      std::string("\4\0", 2) + "0.1" + noise,
  };
  for (const std::string& text : texts) {
    RawSocket raw(where);
    raw.Send(text);
    raw.Send(noise);
    ++(raw.HungUp() ? tally->refused : tally->silent);
  }
}

// ---- the protocol, by the wrong one ----------------------------------------

std::vector<std::string> Identities(int num_ranks) {
  std::vector<std::string> names;
  for (int rank = 0; rank < num_ranks; ++rank) {
    // The incarnation that there is, the next one, and one far away.
    for (const char* incarnation : {"1", "2", "999", "18446744073709551615"}) {
      names.push_back(std::to_string(rank) + "." + incarnation);
    }
  }
  for (const char* name :
       {"7.1", "8.1", "-1.1", "0.0", "00.1", "0.01", "0.1.1", "0.", ".1", "0",
        "4294967296.1", "coordinator", "../0.1", "0.1\n"}) {
    names.push_back(name);
  }
  names.push_back(std::string(255, 'x'));
  return names;
}

// Everything that a worker can say, in its own name.
std::vector<std::string> Reports(Rank rank, int num_ranks,
                                 uint64_t incarnation) {
  wire::Hello hello;
  hello.rank = rank;
  hello.num_ranks = num_ranks;
  hello.pid = static_cast<uint32_t>(getpid());
  hello.num_pages = 1000;
  hello.max_slots = 256;
  wire::Halted halted;
  halted.round = 1;
  StepResult result;
  result.step = StepId{1};
  wire::Prepared refused;
  refused.epoch = Epoch{1};
  refused.reason = "no";
  wire::Switched switched;
  switched.epoch = Epoch{1};
  wire::Interrupted interrupted;
  interrupted.reason = "halt";
  wire::Fault fault;
  fault.reason = "forged";
  std::vector<std::string> bytes;
  for (const wire::Report& report :
       {wire::Report(hello), wire::Report(fault), wire::Report(interrupted),
        wire::Report(halted), wire::Report(result), wire::Report(refused),
        wire::Report(switched)}) {
    for (uint64_t sequence : {uint64_t{1}, uint64_t{1} << 40}) {
      bytes.push_back(Encode(wire::ReportMessage{
          {Term{1}, Incarnation{incarnation}, sequence}, report}));
    }
  }
  return bytes;
}

// Messages that are short, and make much of it.
std::vector<std::string> Bombs(const std::string& message) {
  std::vector<std::string> bombs;
  const auto word = [](uint64_t value) {
    return std::string(reinterpret_cast<const char*>(&value), sizeof value);
  };
  for (size_t at = 8; at + 8 <= message.size(); at += 8) {
    for (uint64_t pointer :
         {uint64_t{0x1ffffff8} << 32 | 1,  // 2^26 elements of no size
          uint64_t{0xffffffff} << 32 | 1,  // 2^29 - 1 structures
          uint64_t{0xfffffffd} << 32 | 1,  // as many 64-bit numbers
          uint64_t{0xffffffff} << 32 | 0,  // a structure of 2^17 words
          uint64_t{0xfffffffc},            // a structure that holds itself
          uint64_t{0x7fffffff} << 32 | 2,  // in another segment
          std::numeric_limits<uint64_t>::max()}) {
      std::string bomb = message;
      bomb.replace(at, 8, word(pointer));
      bombs.push_back(std::move(bomb));
    }
  }
  std::string segments = message;  // claims to be of 2^31 segments
  segments.replace(0, 4, "\xff\xff\xff\x7f");
  bombs.push_back(segments);
  return bombs;
}

// Waits for the fate of a connection; true if it was let in.
bool WaitForFate(zmq::socket_t& monitor, Tally* tally) {
  monitor.set(zmq::sockopt::rcvtimeo, kPatienceMs);
  for (;;) {
    zmq::message_t event, address;
    if (!monitor.recv(event) || !monitor.recv(address)) {
      ++tally->silent;
      return false;
    }
    uint16_t number = 0;
    std::memcpy(&number, event.data(), sizeof number);
    if (number == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) {
      ++tally->let_in;
      return true;
    }
    if (number == ZMQ_EVENT_DISCONNECTED || number == ZMQ_EVENT_CLOSED ||
        (number & (ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                   ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                   ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)) != 0) {
      ++tally->refused;
      return false;
    }
  }
}

// Without a key, or with keys that it has made up itself.
void Pose(zmq::context_t& context, const std::string& endpoint,
          const std::string& identity, const std::vector<std::string>& messages,
          bool with_key, Tally* tally) {
  static int number = 0;
  const std::string watch = "inproc://watch" + std::to_string(number++);
  zmq::socket_t socket(context, zmq::socket_type::dealer);
  socket.set(zmq::sockopt::linger, 0);
  socket.set(zmq::sockopt::sndhwm, 0);
  socket.set(zmq::sockopt::routing_id, identity);
  socket.set(zmq::sockopt::probe_router, true);
  socket.set(zmq::sockopt::reconnect_ivl, -1);
  if (with_key) {
    char public_key[41], secret_key[41];
    zmq_curve_keypair(public_key, secret_key);
    socket.set(zmq::sockopt::curve_publickey, public_key);
    socket.set(zmq::sockopt::curve_secretkey, secret_key);
    socket.set(zmq::sockopt::curve_serverkey, public_key);
  }
  zmq_socket_monitor(socket.handle(), watch.c_str(), ZMQ_EVENT_ALL);
  zmq::socket_t monitor(context, zmq::socket_type::pair);
  monitor.set(zmq::sockopt::linger, 0);
  monitor.connect(watch);
  socket.connect(endpoint);
  // A socket that was refused has nowhere to send to, and would wait.
  bool open = true;
  for (const std::string& message : messages) {
    open = open && socket.send(zmq::buffer(message), zmq::send_flags::dontwait);
  }
  if (open) {  // in two parts
    socket.send(zmq::buffer(messages[0]),
                zmq::send_flags::sndmore | zmq::send_flags::dontwait);
    socket.send(zmq::buffer(messages[0]), zmq::send_flags::dontwait);
  }
  if (WaitForFate(monitor, tally)) {
    // What it hears in a second would have been somebody else's.
    socket.set(zmq::sockopt::rcvtimeo, 1000);
    zmq::message_t message;
    while (socket.recv(message)) ++tally->heard;
  }
  zmq_socket_monitor(socket.handle(), nullptr, 0);
}

int Main(const std::string& where, int num_ranks) {
  const std::string endpoint = (IsPath(where) ? "ipc://" : "tcp://") + where;
  // Those that say nothing, meanwhile.
  std::vector<std::unique_ptr<RawSocket>> silent;
  for (int i = 0; i < 32; ++i) {
    silent.push_back(std::make_unique<RawSocket>(where));
  }
  Tally garbage;
  SendGarbage(where, &garbage);
  std::printf("garbage: %d hung up on, %d not\n", garbage.refused,
              garbage.silent);
  Tally posing;
  zmq::context_t context(1);
  for (const std::string& identity : Identities(num_ranks)) {
    // As the name says, where it is one.
    const Rank rank = std::atoi(identity.c_str());
    const size_t dot = identity.find('.');
    const uint64_t incarnation =
        dot == std::string::npos
            ? 1
            : std::strtoull(identity.c_str() + dot + 1, nullptr, 10);
    std::vector<std::string> messages = Reports(
        rank < 0 || rank >= kMaxRanks ? 0 : rank, num_ranks, incarnation);
    const std::vector<std::string> bombs = Bombs(messages[0]);
    messages.insert(messages.end(), bombs.begin(), bombs.end());
    messages.push_back(std::string(100'003, 'x'));
    for (bool with_key : {false, true}) {
      Pose(context, endpoint, identity, messages, with_key, &posing);
    }
  }
  Pose(context, endpoint, "0.1", {std::string(kOversizeBytes, 'x')}, false,
       &posing);
  std::printf("poses: %d refused, %d let in, %d messages heard, %d no fate\n",
              posing.refused, posing.let_in, posing.heard, posing.silent);
  const bool harmless = garbage.silent == 0 && posing.let_in == 0 &&
                        posing.heard == 0 && posing.silent == 0 &&
                        posing.refused > 0;
  return harmless ? 0 : 1;
}

}  // namespace
}  // namespace moebius

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: hostile_peer SOCKET NUM_RANKS\n");
    return 2;
  }
  return moebius::Main(argv[1], std::atoi(argv[2]));
}
