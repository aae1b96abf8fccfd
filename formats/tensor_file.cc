#include "formats/tensor_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "services/check.h"

namespace phalanx::formats {
namespace {

constexpr int kPartsPerRead = 512;  // at most IOV_MAX
static_assert(kPartsPerRead <= IOV_MAX);

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
  if (memory == MAP_FAILED) {
    ::close(fd);
    return absl::InvalidArgumentError(absl::StrCat(path, ": cannot map: ", std::strerror(error)));
  }
  std::shared_ptr<MappedFile> file(new MappedFile);
  file->path_ = path;
  file->bytes_ = {static_cast<const char*>(memory), static_cast<size_t>(st.st_size)};
  file->fd_ = fd;
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
  if (fd_ >= 0) ::madvise(const_cast<char*>(bytes_.data()), bytes_.size(), MADV_WILLNEED);
}

absl::Status MappedFile::ReadRows(const char* from, uint64_t rows, const RowTarget& to) const {
  PHX_CHECK(from >= bytes_.data() && to.stride >= to.row_bytes);
  auto at = static_cast<uint64_t>(from - bytes_.data());
  PHX_CHECK(at <= bytes_.size() && (to.row_bytes == 0 || rows <= (bytes_.size() - at) / to.row_bytes));
  if (fd_ < 0) {
    for (uint64_t i = 0; i < rows; ++i) std::memcpy(to.data + i * to.stride, from + i * to.row_bytes, to.row_bytes);
    return absl::OkStatus();
  }
  // Rows without gaps are one piece.
  const bool dense = to.stride == to.row_bytes;
  const uint64_t piece = dense ? rows * to.row_bytes : to.row_bytes;
  const uint64_t pieces = dense ? 1 : rows;
  iovec parts[kPartsPerRead];
  for (uint64_t next = 0, done = 0; next < pieces && piece > 0;) {   // `done` bytes of piece `next` are read
    const int count = static_cast<int>(std::min<uint64_t>(pieces - next, kPartsPerRead));
    for (int i = 0; i < count; ++i) parts[i] = {to.data + (next + i) * to.stride, piece};
    parts[0] = {to.data + next * to.stride + done, piece - done};
    const ssize_t got = ::preadv(fd_, parts, count, static_cast<off_t>(at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      return absl::DataLossError(
          absl::StrCat(path_, ": cannot read at byte ", at, ": ", got < 0 ? std::strerror(errno) : "the file has become shorter"));
    }
    at += static_cast<uint64_t>(got);
    done += static_cast<uint64_t>(got);
    next += done / piece;
    done %= piece;
  }
  return absl::OkStatus();
}

MappedFile::~MappedFile() {
  if (fd_ < 0) return;
  ::munmap(const_cast<char*>(bytes_.data()), bytes_.size());
  ::close(fd_);
}

}  // namespace phalanx::formats
