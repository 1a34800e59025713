"""Proves that scripts/tidy finds what it looks for, and nothing in good code.

Each case is a small tree, GOOD with some files changed, and the one breach that
is to be found in it.
"""

import os
import sys
import tempfile

# What is easily taken for something else.
GOOD = {
    "common/CMakeLists.txt": "moebius_library(a HDRS a.h SRCS a.cc main.cc)\n",
    "common/a.h": """// Nobody sleep()s here, and no comment throws. // }
#pragma once

#include <string>

#define TWICE(x) Doubled(x)

namespace moebius {

enum class Colour { kRed, kBlue };
inline constexpr int kLimit = 1'000'000;  // a bound is a contract
inline int Doubled(int x) { return 2 * x; }  // TWICE uses it

class Base {
 public:
  virtual ~Base() = default;
  virtual void OnEvent(int event) = 0;  // called by a.cc, overridden by others
};

template <typename T>
class Machine final : public Base {
 public:
  explicit Machine(int x) : x_{x}, text_("}") {}
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  bool operator<(const Machine& other) const { return x_ < other.x_; }
  void OnEvent(int event) override;
  int size() const { return x_; }
  int Run(Colour colour = Colour::kRed, std::string text = {}) const;

 private:
  int Inner() const;

  int x_ = 0;
  std::string text_{"{"};
};

}  // namespace moebius
""",
    "common/a.cc": """#include "common/a.h"

namespace moebius {
namespace {
constexpr char kRaw[] = R"json({"a": "sleep_for(1); TODO_ {"})json";
constexpr char kBrace = '{', kQuote = '"', kApostrophe = '\\'';
const auto kSum = [](int a, int b) { return a + b; };
}  // namespace

template <typename T>
int Machine<T>::Inner() const {
  const std::string said = "abort(); system(\\"rm\\") // }";
  return said.size() + kLimit + kSum(1, 2);
}

template <typename T>
int Machine<T>::Run(Colour, std::string) const {
  auto at = clock_.time(3) + timer->exit(1) + app.system() + Mine::rand();
  return Inner() + at;
}

void Tell(Base& base) { base.OnEvent(3); }

}  // namespace moebius
""",
    "common/main.cc": """#include "common/a.h"

int main() {
  return moebius::Machine<int>(TWICE(3)).Run();
}
""",
    "tests/CMakeLists.txt": "foreach(name a_test)\nendforeach()\n",
    "tests/a_test.cc": """#include "common/a.h"

TEST(Machine, RunsOnce) { if (getenv("X") == nullptr) abort(); }
""",
}
LINES = "  ++x;\n" * 60
USE = ("common/user.cc", '#include "common/b.h"\nint Use() { return %s; }\n')


def source(line):
    """A file with one line in question, in line 3."""
    return {"common/CMakeLists.txt": "a.h a.cc main.cc b.cc\n",
            "common/b.cc": "namespace moebius {\nvoid F() {\n%s\n}\n}\n" % line}


def header(text, user=""):
    """A header that declares `text`, with a file that uses `user`."""
    return {"common/CMakeLists.txt": "a.h a.cc main.cc b.h b.cc user.cc\n",
            "common/b.h": text + "\n",
            USE[0]: USE[1] % (user or "0")}


# (rule, files that change, part of the breach)
BAD = [
    ("sleep", source("absl::SleepFor(absl::Seconds(1));"), "b.cc:3: a sleep"),
    ("sleep", {"tests/a_test.cc": "void F() { usleep(1); }\n"}, ":1: a sleep"),
    ("shell", source('std::system("ls");'), "b.cc:3: a command for a shell"),
    ("bound", source("strcpy(a, b);"), "b.cc:3: a write without a bound"),
    ("number", source("int x = atoi(text);"), "b.cc:3: a number read"),
    ("number", source("int x = std::stoi(text);"), "b.cc:3: a number read"),
    ("seed", source("int x = ::rand();"), "b.cc:3: chance"),
    ("seed", source("std::random_device device;"), "b.cc:3: chance"),
    ("regex", source("std::regex pattern;"), "b.cc:3: std::regex"),
    ("assert", source("assert(x);"), "b.cc:3: assert"),
    ("end", source("if (x) exit(1);"), "b.cc:3: the end of the process"),
    ("throw", source("throw 1;"), "b.cc:3: throw"),
    ("output", source('std::printf("x");'), "b.cc:3: output past the log"),
    ("output", source("std::cerr << 1;"), "b.cc:3: output past the log"),
    ("endl", source("out << std::endl;"), "b.cc:3: std::endl"),
    ("using", header("using namespace absl;"), "b.h:1: using namespace"),
    ("using", source("using namespace std;"), "b.cc:3: using namespace std"),
    ("condition", source("#ifdef __linux__\n#endif"), "b.cc:3: conditional"),
    ("cuda", {"tests/a_test.cc": "#if defined(__CUDACC__)\n#endif\n"},
     ":1: a switch for CUDA"),
    ("environment", source('getenv("X");'), "b.cc:3: a setting from"),
    ("detach", source("thread.detach();"), "b.cc:3: a detached thread"),
    ("clock", source("auto x = absl::Now();"), "b.cc:3: the clock on the wall"),
    ("clock", source("auto x = std::time(nullptr);"), "b.cc:3: the clock on"),
    ("threads", source("localtime(&x);"), "b.cc:3: one answer"),
    ("jump", source("goto end;"), "b.cc:3: a jump"),
    ("note", source("// TODO: more"), "b.cc:3: a note"),
    ("note", {"scripts/x": "# FIXME\n"}, "scripts/x:1: a note"),
    ("file", {"scripts/x": "#!/bin/sh\n" + "a\n" * 600}, "x:1: 601 lines"),
    ("file", {"tests/a_test.cc": "int x;\n" * 601}, "a_test.cc:1: 601 lines"),
    ("function", source(LINES), "b.cc:2: F has 63 lines"),
    ("function", source("} int Z::Y(\n  int x) const\n{\n" + LINES),
     "b.cc:3: Z::Y has 65 lines"),
    ("lambda", source("g([&](int x) {\n" + LINES + "});"), "F has 64 lines"),
    ("test", {"tests/a_test.cc": "TEST_F(Ax, DoesB) {\n" + LINES + "}\n"},
     "a_test.cc:1: Ax.DoesB has 62 lines"),
    ("member", header("struct S {\n  S() : x{1} {\n" + LINES + "}\nint x; };",
                      "S().x"), "b.h:2: S::S has 62 lines"),
    ("braces", source("{"), "b.cc:1: braces do not match"),
    ("unused", header("int Lonely(int x);\nint Asked();", "Asked()"),
     "b.h:1: nothing uses Lonely"),
    ("unused", header("struct S {\n  int Lonely() const { return 1; }\n};",
                      "S()"), "b.h:2: nothing uses S::Lonely"),
    ("unused", header("inline constexpr int kLonely[2] = {1, 2};"),
     "b.h:1: nothing uses kLonely"),
    ("unused", header("class Lonely {\n public:\n  Lonely();\n  ~Lonely();\n};"),
     "b.h:1: nothing uses Lonely"),
    ("unused", header("class S {\n  void Hidden();\n  static int x;\n};",
                      "S::x"), "b.h:2: nothing uses S::Hidden"),
    ("own-only", {**header("int Lonely(int x);"), "common/b.cc":
                  '#include "common/b.h"\nint Lonely(int x) { return x; }\n'
                  "int y = Lonely(3);\n"}, "b.h:1: only its own source file"),
    ("tests-only", {**header("int Lonely(int x);"), "tests/a_test.cc":
                    '#include "common/b.h"\nint x = Lonely(1);\n'},
     "b.h:1: only tests use Lonely"),
    ("stray", {"common/c.cc": ""}, "c.cc:1: no CMakeLists.txt"),
    ("stray", {"common/c.h": ""}, "c.h:1: no file includes it"),
]

LONG = source(LINES)
LIST = "scripts/tidy_exceptions.txt"
# (what the list says, files, breaches)
EXCEPTIONS = [
    ("function b.cc F 63\n", LONG, []),
    ("function b.cc F 62\n", LONG, ["F has 63 lines", "list of exceptions"]),
    ("# why\nfunction b.cc F 64\n", LONG, [":2: ", "lower it to 63"]),
    ("function a.cc Tell 70\n", {}, ["txt:1: ", "take it off"]),
    ("function gone.cc F 70\n", {}, ["take it off"]),
    ("file x 601\n", {"scripts/x": "#!/bin/sh\n" + "a\n" * 600}, []),
    ("unused b.h Lonely\n", header("int Lonely(int x);"), []),
    ("unused b.h Asked\n", header("int Asked();", "Asked()"), ["take it off"]),
]


def lay(root, files):
    for path, text in {**GOOD, **files}.items():
        full = os.path.join(root, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "w", encoding="utf-8") as file:
            file.write(text)


def breaches_of(tidy, files):
    with tempfile.TemporaryDirectory() as root:
        lay(root, files)
        return [str(b) for b in tidy.check(root, tidy.RULES)[1]]


def shrunk(tidy, text, files):
    """The list as --shrink leaves it."""
    with tempfile.TemporaryDirectory() as root:
        lay(root, {**files, LIST: text})
        tidy.check(root, tidy.RULES, shrink=True)
        with open(os.path.join(root, LIST), encoding="utf-8") as file:
            return file.read()


def run(tidy):
    found = breaches_of(tidy, {})
    if found:
        sys.exit("the self-test found breaches in good code:\n" +
                 "\n".join(found))
    missing = {r.what for r in tidy.RULES}
    for rule, files, part in BAD:
        found = breaches_of(tidy, files)
        if len(found) != 1 or part not in found[0]:
            sys.exit(f"{rule}: wanted one breach with {part!r}, found {found}")
        missing -= {r.what for r in tidy.RULES if r.what in found[0]}
    if missing:
        sys.exit(f"no case of the self-test breaks {sorted(missing)}")
    for text, files, parts in EXCEPTIONS:
        found = breaches_of(tidy, {**files, LIST: text})
        if len(found) != (1 if parts else 0) or not all(
                part in found[0] for part in parts):
            sys.exit(f"list {text!r}: wanted {parts}, found {found}")
    left = shrunk(tidy, "# why\nfunction b.cc F 64\nfunction gone.cc F 9\n", LONG)
    if left != "# why\nfunction b.cc F 63\n":
        sys.exit(f"--shrink left {left!r}")
    print("self-test passed")
