#include "worker/plan/prefix_index.h"

#include <openssl/evp.h>

#include "services/check.h"

namespace phalanx::worker::plan {

// The algorithm is fetched once: a lookup by name at every block would cost more than the hash.
struct BlockHasher::State {
  EVP_MD* algorithm = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() {
    EVP_MD_CTX_free(context);
    EVP_MD_free(algorithm);
  }
  BlockKey Hash(std::string_view head, const void* tail, size_t tail_bytes) const {
    BlockKey key;
    unsigned int size = 0;
    PHX_CHECK(EVP_DigestInit_ex(context, algorithm, nullptr) == 1);
    PHX_CHECK(EVP_DigestUpdate(context, head.data(), head.size()) == 1);
    PHX_CHECK(EVP_DigestUpdate(context, tail, tail_bytes) == 1);
    PHX_CHECK(EVP_DigestFinal_ex(context, key.bytes.data(), &size) == 1 && size == key.bytes.size());
    return key;
  }
};

BlockHasher::BlockHasher() : state_(std::make_unique<State>()) {
  PHX_CHECK(state_->algorithm != nullptr && state_->context != nullptr);
}
BlockHasher::~BlockHasher() = default;

BlockKey BlockHasher::Root(std::string_view salt) const { return state_->Hash("phalanx kv root 1:", salt.data(), salt.size()); }

BlockKey BlockHasher::Next(const BlockKey& parent, std::span<const int32_t> ids) const {
  const std::string_view head(reinterpret_cast<const char*>(parent.bytes.data()), parent.bytes.size());
  return state_->Hash(head, ids.data(), ids.size_bytes());
}

}  // namespace phalanx::worker::plan
