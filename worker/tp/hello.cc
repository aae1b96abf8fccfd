#include "worker/tp/hello.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "services/check.h"
#include "worker/tp/frame.h"

namespace phalanx::worker::tp {
namespace {

// What a peer calls itself may stand in a log line or an error: printable ASCII only.
bool Printable(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c <= 0x7e; });
}

}  // namespace

std::string HelloBytes(const Hello& hello) {
  Writer out;
  out.U32(static_cast<uint32_t>(hello.rank));
  out.U32(static_cast<uint32_t>(hello.size));
  out.U8(static_cast<uint8_t>(hello.channel));
  out.Raw({hello.session.data(), hello.session.size()});
  out.Raw({hello.nonce.data(), hello.nonce.size()});
  return out.Take();
}

absl::StatusOr<Hello> ParseHello(std::string_view bytes) {
  Reader in(bytes);
  Hello out;
  const uint32_t rank = in.U32();
  const uint32_t size = in.U32();
  const uint8_t channel = in.U8();
  const std::string_view session = in.Raw(kSessionBytes);
  const std::string_view nonce = in.Raw(kNonceBytes);
  if (!in.done() || rank > INT32_MAX || size > INT32_MAX || channel > 1) return absl::InvalidArgumentError("bytes that are no hello");
  out.rank = static_cast<int>(rank);
  out.size = static_cast<int>(size);
  out.channel = static_cast<Channel>(channel);
  std::copy(session.begin(), session.end(), out.session.begin());
  std::copy(nonce.begin(), nonce.end(), out.nonce.begin());
  return out;
}

absl::Status CheckTerms(const Terms& terms) {
  std::map<std::string_view, bool> seen;
  for (const auto& [name, value] : terms) {
    if (name.empty() || name.size() > kTermNameBytesMax || !Printable(name) || value.size() > kTermValueBytesMax || !Printable(value)) {
      return absl::InvalidArgumentError(absl::StrCat("term '", name.substr(0, kTermNameBytesMax), "' is empty, too long or not printable"));
    }
    if (!seen.emplace(name, true).second) return absl::InvalidArgumentError(absl::StrCat("term '", name, "' is there twice"));
  }
  if (terms.size() > kTermsMax) return absl::InvalidArgumentError(absl::StrCat(terms.size(), " terms, at most ", kTermsMax));
  return absl::OkStatus();
}

std::string TermsBytes(const Terms& terms) {
  Writer out;
  out.U16(static_cast<uint16_t>(terms.size()));
  for (const auto& [name, value] : terms) {
    out.Text(name);
    out.Text(value);
  }
  return out.Take();
}

absl::StatusOr<Terms> ParseTerms(std::string_view bytes) {
  Reader in(bytes);
  Terms out;
  const size_t count = in.U16();
  for (size_t i = 0; i < std::min(count, kTermsMax + 1) && in.ok(); ++i) {
    const std::string_view name = in.Text(kTermNameBytesMax);
    const std::string_view value = in.Text(kTermValueBytesMax);
    out.emplace_back(name, value);
  }
  if (!in.done()) return absl::InvalidArgumentError("bytes that are no terms");
  PHX_RETURN_IF_ERROR(CheckTerms(out));
  return out;
}

absl::Status CompareTerms(const Terms& here, const Terms& there, int rank) {
  const std::map<std::string, std::string> ours(here.begin(), here.end());
  const std::map<std::string, std::string> theirs(there.begin(), there.end());
  for (const auto& [name, value] : ours) {
    const auto other = theirs.find(name);
    const std::string text = other == theirs.end() ? "not given" : other->second;
    if (other == theirs.end() || text != value) {
      return absl::FailedPreconditionError(absl::StrCat(name, " is ", value, " here and ", text, " at rank ", rank));
    }
  }
  for (const auto& [name, value] : theirs) {
    if (!ours.contains(name)) {
      return absl::FailedPreconditionError(absl::StrCat(name, " is not given here and ", value, " at rank ", rank));
    }
  }
  return absl::OkStatus();
}

std::string Proof(std::string_view secret, Side side, std::string_view hello, std::string_view nonce, std::string_view terms) {
  Writer message;
  message.Text(side == Side::kLeader ? "phalanx rank proof 1, leader" : "phalanx rank proof 1, follower");
  message.Text(hello);
  message.Text(nonce);
  message.Text(terms);
  const std::string bytes = message.Take();
  std::string out(kProofBytes, '\0');
  unsigned int size = 0;
  PHX_CHECK(HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()), reinterpret_cast<const unsigned char*>(bytes.data()),
                 bytes.size(), reinterpret_cast<unsigned char*>(out.data()), &size) != nullptr && size == kProofBytes);
  return out;
}

bool SameProof(std::string_view a, std::string_view b) {
  return a.size() == kProofBytes && b.size() == kProofBytes && CRYPTO_memcmp(a.data(), b.data(), kProofBytes) == 0;
}

void FillRandom(char* to, size_t size) { PHX_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(to), static_cast<int>(size)) == 1); }

}  // namespace phalanx::worker::tp
