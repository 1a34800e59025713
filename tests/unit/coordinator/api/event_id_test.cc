#include "coordinator/api/event_id.h"

#include <optional>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

using testing::HasSubstr;

TEST(EventId, WhatIsNoneIsNothing) {
  for (const std::string text :
       {"", "x", "1-", "-1", "1--2", "1.5", "12345678901", "1-x", "0000002a",
        "0000002a.", "0000002a.x", "0000002g.1", "02a.1", "000000002a.1",
        "0000002a.1.2", "-000002a.1", "0000002a.1-", " 1", "+1"}) {
    EXPECT_EQ(ParseEventId(text), std::nullopt) << text;
  }
  std::string many = "1";
  for (int i = 0; i < 1 << 16; ++i) many += "-1";
  EXPECT_EQ(ParseEventId(many), std::nullopt);
}

TEST(EventId, SaysTokensOfEachChoiceOfAnAnswer) {
  EXPECT_EQ(ParseEventId("0000002a.17"), (EventId{42, {17}}));
  EXPECT_EQ(ParseEventId("ffffffff.0-16-9999999999"),
            (EventId{0xffffffff, {0, 16, 9999999999}}));
  EXPECT_EQ(ParseEventId("17-16"), (EventId{std::nullopt, {17, 16}}));
}

TEST(EventId, IsReadAsItWasWritten) {
  for (uint32_t answer : {0u, 42u, 0xffffffffu}) {
    const EventId id{answer, {0, 17, 4096}};
    std::string text;
    AppendEventId(answer, id.counts, &text);
    EXPECT_EQ(ParseEventId(text), id) << text;
  }
}

TEST(EventId, OnlyTheAnswerItIsOfCanBeResumed) {
  const uint32_t ours = AnswerTag("cmpl-1");
  ASSERT_NE(ours, AnswerTag("cmpl-2"));
  struct Case {
    EventId last;
    std::optional<std::string_view> answer_id;
    int status;  // 0: it can
  };
  for (const Case& c : {
           Case{{ours, {3}}, std::nullopt, 404},  // unknown or forgotten
           Case{{ours, {3, 4}}, std::nullopt, 404},
           Case{{std::nullopt, {3}}, std::nullopt, 404},
           Case{{ours, {3}}, "cmpl-2", 404},  // answered anew since
           Case{{ours, {3, 4}}, "cmpl-2", 404},
           Case{{ours, {3, 4}}, "cmpl-1", 400},  // of another request
           Case{{ours, {3}}, "cmpl-1", 0},
           Case{{std::nullopt, {3}}, "cmpl-1", 0},
       }) {
    const auto refusal = RefuseResume(c.last, c.answer_id, 1);
    ASSERT_EQ(refusal.has_value(), c.status != 0);
    if (!refusal) continue;
    EXPECT_EQ(refusal->http_status, c.status);
    EXPECT_EQ(refusal->param, "Last-Event-ID");
    EXPECT_EQ(refusal->code, c.status == 404 ? "answer_not_resumable" : "");
    if (c.status == 400) {
      EXPECT_THAT(refusal->message, HasSubstr("2 choices"));
    }
  }
}

}  // namespace
}  // namespace moebius
