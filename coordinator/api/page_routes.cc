#include "coordinator/api/page_routes.h"

#include <string>

#include "coordinator/page/page_texts.h"

namespace moebius {
namespace {

// The page loads its own files and asks its own server, and is in no frame: a
// page around it could have its buttons pressed.
constexpr char kPolicy[] =
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src "
    "'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'";

std::string Html(bool keyed) {
  std::string text(PageHtml());
  constexpr std::string_view kMark = R"(data-keyed="no")";
  const size_t at = text.find(kMark);
  if (keyed && at != text.npos) {
    text.replace(at, kMark.size(), R"(data-keyed="yes")");
  }
  return text;
}

}  // namespace

bool IsPage(std::string_view path) {
  return path == "/" || path == "/page.js" || path == "/page.css";
}

HttpResponse PageResponse(std::string_view path, bool keyed) {
  HttpResponse response;
  response.headers = {{"Content-Security-Policy", kPolicy},
                      {"X-Content-Type-Options", "nosniff"},
                      {"Referrer-Policy", "no-referrer"},
                      {"Cache-Control", "no-cache"}};
  if (path == "/page.js") {
    response.content_type = "text/javascript; charset=utf-8";
    response.body = PageScript();
  } else if (path == "/page.css") {
    response.content_type = "text/css; charset=utf-8";
    response.body = PageStyle();
  } else {
    response.content_type = "text/html; charset=utf-8";
    response.body = Html(keyed);
  }
  return response;
}

HttpResponse DescriptionResponse() {
  HttpResponse response;
  response.body = OpenApiJson();
  return response;
}

}  // namespace moebius
