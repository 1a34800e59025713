#include "coordinator/http/listen_asio.h"

#include <string>

#include "common/base/cat.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using boost::system::error_code;

absl::StatusOr<tcp::endpoint> Resolve(asio::io_context& context,
                                      const ListenAddress& address) {
  if (address.port < 0 || address.port > 65535) {
    return absl::InvalidArgumentError(
        Cat("port ", address.port, " is not between 0 and 65535"));
  }
  error_code error;
  tcp::resolver resolver(context);
  const auto found =
      resolver.resolve(address.host, std::to_string(address.port),
                       tcp::resolver::passive, error);
  if (error || found.empty()) {
    return absl::InvalidArgumentError(
        Cat("\"", address.host,
            "\" is no address to listen on: ", error.message()));
  }
  return found.begin()->endpoint();
}

}  // namespace

absl::StatusOr<tcp::acceptor> ListenOn(asio::io_context& context,
                                       const ListenAddress& address,
                                       int backlog) {
  ASSIGN_OR_RETURN(const tcp::endpoint endpoint, Resolve(context, address));
  tcp::acceptor acceptor(context);
  error_code error;
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(backlog, error);
  if (!error) return acceptor;
  return absl::UnavailableError(Cat("cannot listen on ", address.host, ":",
                                    address.port, ": ", error.message()));
}

}  // namespace moebius
