#include "worker/memory/region_ipc_cuda.h"

#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "kernels/cuda/failure.h"
#include "kernels/cuda/gpu.h"

namespace moebius {
namespace {

// What the memfd of a region holds.
struct MemoryHandle {
  static constexpr uint64_t kMagic = 0x31485043494d424dull;

  uint64_t magic = kMagic;
  int64_t size_bytes = 0;
  int64_t owner = 0;     // its process
  uint64_t address = 0;  // there
  cudaIpcMemHandle_t handle{};
  uint8_t unused[32] = {};
};
static_assert(sizeof(MemoryHandle) == kMemoryHandleBytes);

absl::StatusOr<UniqueFd> ToMemfd(const std::string& name,
                                 const MemoryHandle& handle) {
  UniqueFd fd(::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return ErrnoStatus("memfd_create");
  if (::pwrite(fd.get(), &handle, sizeof(handle), 0) !=
      static_cast<ssize_t>(sizeof(handle))) {
    return ErrnoStatus("writing a handle of memory");
  }
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  if (::fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0) {
    return ErrnoStatus("F_ADD_SEALS");
  }
  return fd;
}

absl::StatusOr<MemoryHandle> FromMemfd(int fd, int64_t size_bytes) {
  MemoryHandle handle;
  handle.magic = 0;
  const ssize_t count = ::pread(fd, &handle, sizeof(handle), 0);
  if (count != static_cast<ssize_t>(sizeof(handle)) ||
      handle.magic != MemoryHandle::kMagic) {
    return absl::InvalidArgumentError("not a handle of a GPU's memory");
  }
  if (handle.size_bytes != size_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a handle of ", handle.size_bytes, " bytes, not of ", size_bytes));
  }
  return handle;
}

// Where the memory behind a handle is in this process.
absl::StatusOr<std::byte*> Open(const MemoryHandle& handle) {
  if (handle.owner == ::getpid()) {
    return reinterpret_cast<std::byte*>(handle.address);
  }
  void* base = nullptr;
  const absl::Status opened =
      CudaStatus(cudaIpcOpenMemHandle(&base, handle.handle,
                                      cudaIpcMemLazyEnablePeerAccess),
                 "opening a handle of another process's memory");
  if (absl::IsInternal(opened)) {
    return absl::InvalidArgumentError(opened.message());
  }
  RETURN_IF_ERROR(opened);
  return static_cast<std::byte*>(base);
}

void Close(const MemoryHandle& handle, std::byte* base) {
  if (handle.owner != ::getpid()) cudaIpcCloseMemHandle(base);
}

// Ours: the allocation.
class OwnIpcRegion final : public Region {
 public:
  OwnIpcRegion(int gpu, UniqueFd fd, std::byte* base, int64_t size_bytes)
      : Region(std::move(fd), base, size_bytes, Access::kReadWrite),
        gpu_(gpu) {}
  ~OwnIpcRegion() override {
    if (UseGpu(gpu_).ok()) cudaFree(base_);
  }
  void Keep(UniqueFd fd) { fd_ = std::move(fd); }
  absl::Status Replace(UniqueFd) override {
    return absl::FailedPreconditionError("memory of ours is not replaced");
  }

 private:
  const int gpu_;
};

// A peer's.
class PeerIpcRegion final : public Region {
 public:
  PeerIpcRegion(int gpu, UniqueFd fd, const MemoryHandle& handle,
                std::byte* base, Access access)
      : Region(std::move(fd), base, handle.size_bytes, access),
        gpu_(gpu),
        handle_(handle) {}
  ~PeerIpcRegion() override {
    if (is_open_ && UseGpu(gpu_).ok()) Close(handle_, base_);
  }

  absl::Status Replace(UniqueFd fd) override {
    RETURN_IF_ERROR(UseGpu(gpu_));
    ASSIGN_OR_RETURN(const MemoryHandle handle,
                     FromMemfd(fd.get(), size_bytes_));
    // The address has to be free for the new memory.
    if (is_open_) Close(handle_, base_);
    is_open_ = false;
    ASSIGN_OR_RETURN(std::byte* const base, Open(handle));
    if (base != base_) {
      Close(handle, base);
      return absl::FailedPreconditionError(
          "the driver maps a successor's memory at another address");
    }
    is_open_ = true;
    handle_ = handle;
    fd_ = std::move(fd);
    return absl::OkStatus();
  }

 private:
  const int gpu_;
  MemoryHandle handle_;
  bool is_open_ = true;
};

class IpcRegionMaker final : public RegionMaker {
 public:
  explicit IpcRegionMaker(int gpu) : gpu_(gpu) {}

  RegionClass region_class() const override { return RegionClass::kHandle; }

  absl::StatusOr<std::unique_ptr<Region>> Create(
      const std::string& name, int64_t size_bytes,
      const RegionOptions& /*options*/) const override {
    if (size_bytes < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("a region of ", size_bytes, " bytes"));
    }
    RETURN_IF_ERROR(UseGpu(gpu_));
    const int64_t rounded = RoundUpToRegion(size_bytes);
    void* base = nullptr;
    RETURN_IF_ERROR(CudaStatus(
        cudaMalloc(&base, static_cast<size_t>(rounded)),
        absl::StrCat("allocating ", rounded, " bytes of GPU ", gpu_).c_str()));
    // Frees it, whatever follows.
    auto region = std::make_unique<OwnIpcRegion>(
        gpu_, UniqueFd(), static_cast<std::byte*>(base), rounded);
    MemoryHandle handle;
    handle.size_bytes = rounded;
    handle.owner = ::getpid();
    handle.address = reinterpret_cast<uint64_t>(base);
    RETURN_IF_ERROR(CudaStatus(cudaIpcGetMemHandle(&handle.handle, base),
                               "a handle of a GPU's memory"));
    RETURN_IF_ERROR(
        CudaStatus(cudaMemset(base, 0, static_cast<size_t>(rounded)),
                   "clearing memory of a GPU"));
    RETURN_IF_ERROR(
        CudaStatus(cudaStreamSynchronize(nullptr), "clearing memory of a GPU"));
    ASSIGN_OR_RETURN(UniqueFd fd, ToMemfd(name, handle));
    region->Keep(std::move(fd));
    return std::unique_ptr<Region>(std::move(region));
  }

  absl::StatusOr<std::unique_ptr<Region>> Map(
      UniqueFd fd, int64_t size_bytes, Region::Access access,
      const RegionOptions& /*options*/) const override {
    RETURN_IF_ERROR(UseGpu(gpu_));
    ASSIGN_OR_RETURN(const MemoryHandle handle,
                     FromMemfd(fd.get(), RoundUpToRegion(size_bytes)));
    ASSIGN_OR_RETURN(std::byte* const base, Open(handle));
    return std::make_unique<PeerIpcRegion>(gpu_, std::move(fd), handle, base,
                                           access);
  }

  absl::StatusOr<UniqueFd> ForPeer(const Region& region) const override {
    return ReopenReadOnly(region.descriptor());
  }

 private:
  const int gpu_;
};

}  // namespace

std::unique_ptr<RegionMaker> MakeIpcRegionMaker(int gpu) {
  return std::make_unique<IpcRegionMaker>(gpu);
}

absl::Status CheckIpcRegions(int gpu) {
  return IpcRegionMaker(gpu).Create("probe", 1, {}).status();
}

}  // namespace moebius
