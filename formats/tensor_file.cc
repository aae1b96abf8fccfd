#include "formats/tensor_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "services/check.h"

namespace phalanx::formats {
namespace {

struct EncodingInfo {
  const char* name;
  int block_elements;
  int block_bytes;
};

// In the order of enum Encoding. Block sizes: GGUF specification, ggml block structures.
constexpr EncodingInfo kEncodings[] = {
    {"F32", 1, 4},     {"F16", 1, 2},     {"BF16", 1, 2},    {"I8", 1, 1},       {"U8", 1, 1},
    {"I32", 1, 4},     {"I64", 1, 8},     {"Q8_0", 32, 34},  {"Q4_0", 32, 18},   {"Q4_1", 32, 20},
    {"Q5_0", 32, 22},  {"Q5_1", 32, 24},  {"Q4_K", 256, 144}, {"Q5_K", 256, 176}, {"Q6_K", 256, 210},
};

const EncodingInfo& InfoOf(Encoding encoding) {
  const auto index = static_cast<size_t>(encoding);
  PHX_CHECK(index < std::size(kEncodings));
  return kEncodings[index];
}

}  // namespace

const char* EncodingName(Encoding encoding) { return InfoOf(encoding).name; }

uint64_t EncodedBytes(Encoding encoding, uint64_t count) {
  const EncodingInfo& info = InfoOf(encoding);
  PHX_CHECK(count % info.block_elements == 0);
  return count / info.block_elements * info.block_bytes;
}

int BlockElements(Encoding encoding) { return InfoOf(encoding).block_elements; }

absl::StatusOr<std::shared_ptr<MappedFile>> MappedFile::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const int error = errno;
    const std::string message = absl::StrCat(path, ": cannot open: ", std::strerror(error));
    return error == ENOENT ? absl::NotFoundError(message) : absl::InvalidArgumentError(message);
  }
  struct stat st {};
  if (::fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
    ::close(fd);
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  if (st.st_size == 0) {
    ::close(fd);
    return absl::InvalidArgumentError(absl::StrCat(path, ": the file is empty"));
  }
  void* memory = ::mmap(nullptr, static_cast<size_t>(st.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
  const int error = errno;
  ::close(fd);
  if (memory == MAP_FAILED) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot map: ", std::strerror(error)));
  }
  std::shared_ptr<MappedFile> file(new MappedFile);
  file->path_ = path;
  file->bytes_ = {static_cast<const char*>(memory), static_cast<size_t>(st.st_size)};
  file->mapped_ = true;
  return file;
}

std::shared_ptr<MappedFile> MappedFile::FromBytes(std::string name, std::string_view bytes) {
  std::shared_ptr<MappedFile> file(new MappedFile);
  file->path_ = std::move(name);
  file->owned_ = std::make_unique<char[]>(bytes.size());
  if (!bytes.empty()) std::memcpy(file->owned_.get(), bytes.data(), bytes.size());
  file->bytes_ = {file->owned_.get(), bytes.size()};
  return file;
}

void MappedFile::WillNeed() const {
  if (mapped_) ::madvise(const_cast<char*>(bytes_.data()), bytes_.size(), MADV_WILLNEED);
}

MappedFile::~MappedFile() {
  if (mapped_) ::munmap(const_cast<char*>(bytes_.data()), bytes_.size());
}

}  // namespace phalanx::formats
