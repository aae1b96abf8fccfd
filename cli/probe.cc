#include "cli/probe.h"

#include <sys/socket.h>
#include <sys/time.h>

#include <memory>

#include <openssl/bio.h>
#include <openssl/ssl.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace phalanx::cli {
namespace {

using Bio = std::unique_ptr<BIO, void (*)(BIO*)>;
using Context = std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)>;

// The gateway answers health at once; what takes longer is asked again later.
constexpr struct timeval kPatience = {1, 0};

Bio Connect(const std::string& address) {
  Bio bio(BIO_new_connect(address.c_str()), BIO_free_all);
  if (bio == nullptr || BIO_do_connect(bio.get()) != 1) return Bio(nullptr, BIO_free_all);
  const int fd = static_cast<int>(BIO_get_fd(bio.get(), nullptr));
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof(kPatience));
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &kPatience, sizeof(kPatience));
  return bio;
}

Bio WithTls(Bio inner, SSL_CTX* context) {
  BIO* tls = BIO_new_ssl(context, 1);
  if (tls == nullptr) return Bio(nullptr, BIO_free_all);
  return Bio(BIO_push(tls, inner.release()), BIO_free_all);
}

}  // namespace

std::string Reachable(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) return address;
  const std::string host = address.substr(0, colon);
  if (host.empty() || host == "0.0.0.0" || host == "[::]" || host == "::") return absl::StrCat("127.0.0.1", address.substr(colon));
  return address;
}

bool IsHealthy(const std::string& address, Scheme scheme) {
  const std::string reachable = Reachable(address);
  const Context context(SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
  Bio bio = Connect(reachable);
  if (bio != nullptr && scheme == Scheme::kHttps) bio = WithTls(std::move(bio), context.get());
  if (bio == nullptr) return false;
  const std::string request = absl::StrCat("GET /health HTTP/1.1\r\nHost: ", reachable, "\r\nConnection: close\r\n\r\n");
  if (BIO_write(bio.get(), request.data(), static_cast<int>(request.size())) != static_cast<int>(request.size())) return false;
  std::string answer;
  char buffer[512];
  while (answer.size() < sizeof("HTTP/1.1 200")) {
    const int got = BIO_read(bio.get(), buffer, sizeof(buffer));
    if (got <= 0) return false;
    answer.append(buffer, static_cast<size_t>(got));
  }
  return absl::StartsWith(answer, "HTTP/1.") && answer.substr(8, 5) == " 200 ";
}

}  // namespace phalanx::cli
