// Whether the head of a request may come in at all: from which pages, for which
// host, with which body. Pure.
//
// A browser sends what any web page asks it to, also to listeners on loopback
// that nobody else reaches, and a page may have its own name lead there (DNS
// rebinding). It says the truth in Host and Origin, though. A listener that
// wants keys need not look at them: no page has one.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coordinator/http/http_message.h"

namespace moebius {

// What a listener lets in.
struct AdmissionRules {
  // Clients must show a key: Host and Origin are not looked at.
  bool keyed = false;
  // Names and addresses under which clients may reach it, beside those of
  // loopback, in the form of NormalHost(). "*": any.
  std::vector<std::string> hosts;
  // It listens on all addresses, so any address may be its own.
  bool any_address = false;
  // Pages that may read its answers, "https://chat.example". "*": any.
  std::vector<std::string> origins;
};

// `hosts` and `origins` are lists of words with spaces between, as the
// configuration has them.
AdmissionRules MakeAdmissionRules(bool keyed, std::string_view bound_address,
                                  std::string_view hosts,
                                  std::string_view origins);

// The host of "HOST", "HOST:PORT" or "[ADDRESS]:PORT": in lower case, without a
// dot at its end, addresses in their usual form and without brackets.
std::string NormalHost(std::string_view authority);

// 403 for a request that came under a foreign name or from a foreign page; 415
// for a body that a page sends as something else than JSON (a browser asks
// nobody before it sends that), or that is compressed. Nothing: come in.
std::optional<HttpResponse> RefuseAtTheDoor(const AdmissionRules& rules,
                                            const HttpRequest& head);

// Whether a browser asks whether a page of an allowed origin may ask. It shows
// no key when it does.
bool IsPreflight(const AdmissionRules& rules, const HttpRequest& head);
HttpResponse PreflightResponse(const HttpRequest& head);

// What answers to `head` say to the browser of an allowed origin (CORS).
std::vector<std::pair<std::string, std::string>> CorsHeaders(
    const AdmissionRules& rules, const HttpRequest& head);

}  // namespace moebius
