// What POST /admin/layout may be asked with.
#include <string>
#include <vector>

#include "coordinator/api/openai_request.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

TEST(LayoutBody, ALayoutIsOneThatThereIs) {
  const std::vector<Layout> layouts = {{1}, {2}, {8}};
  const auto parse = [&](const char* body) {
    return ParseLayoutBody(body, layouts, 8);
  };
  for (const char* body :
       {"{}", R"({"layout":"pp"})", R"({"layout":2})", R"({"layout":"tp4"})",
        R"({"layout":"tp16"})", R"({"layout":"tp1"})", R"({"layout":null})",
        R"({"layout":["ep"]})", R"({"layout":"tp99999999999999999999"})"}) {
    EXPECT_EQ(parse(body).error().param, "layout") << body;
    EXPECT_NE(
        parse(body).error().message.find(R"("ep", "tp2", "tp" or "auto")"),
        std::string::npos)
        << parse(body).error().message;
  }
  EXPECT_EQ(*parse(R"({"layout":"ep"})"), LayoutChoice::kEp);
  EXPECT_EQ(*parse(R"({"layout":"tp"})"), LayoutChoice::kTp);
  EXPECT_EQ(*parse(R"({"layout":"tp8"})"), LayoutChoice::kTp);
  EXPECT_EQ(*parse(R"({"layout":"tp2"})"), LayoutChoice::Of(Layout{2}));
  EXPECT_EQ(*parse(R"({"layout":"auto"})"), LayoutChoice::kAuto);
  EXPECT_EQ(*ParseLayoutBody(R"({"layout":"tp"})", {{1}}, 1),
            LayoutChoice::kEp);
}

}  // namespace
}  // namespace moebius
