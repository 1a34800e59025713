#include "worker/memory/region_cuda.h"

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "kernels/cuda/failure.h"
#include "kernels/cuda/gpu.h"

namespace moebius {
namespace {

constexpr CUmemAllocationHandleType kDescriptor =
    CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;

// The driver's functions, found at run time: programs that use no GPU start
// without its library.
struct Driver {
  PFN_cuMemGetAllocationGranularity_v10020 granularity = nullptr;
  PFN_cuMemCreate_v10020 create = nullptr;
  PFN_cuMemRelease_v10020 release = nullptr;
  PFN_cuMemExportToShareableHandle_v10020 export_handle = nullptr;
  PFN_cuMemImportFromShareableHandle_v10020 import_handle = nullptr;
  PFN_cuMemAddressReserve_v10020 reserve = nullptr;
  PFN_cuMemAddressFree_v10020 free = nullptr;
  PFN_cuMemMap_v10020 map = nullptr;
  PFN_cuMemUnmap_v10020 unmap = nullptr;
  PFN_cuMemSetAccess_v10020 set_access = nullptr;
  PFN_cuGetErrorString_v6000 error_string = nullptr;
};

template <typename F>
absl::Status Find(const char* name, int version, F* function) {
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, reinterpret_cast<void**>(function),
                                       version, cudaEnableDefault, &found);
  if (error == cudaSuccess && found == cudaDriverEntryPointSuccess &&
      *function != nullptr) {
    return absl::OkStatus();
  }
  cudaGetLastError();  // it is told here
  return absl::NotFoundError(absl::StrCat("the driver has no ", name));
}

absl::StatusOr<Driver> FindDriver() {
  constexpr int kVirtualMemory = 10020;  // CUDA 10.2
  Driver driver;
  const auto find = [](const char* name, auto* function) {
    return Find(name, kVirtualMemory, function);
  };
  RETURN_IF_ERROR(find("cuMemGetAllocationGranularity", &driver.granularity));
  RETURN_IF_ERROR(find("cuMemCreate", &driver.create));
  RETURN_IF_ERROR(find("cuMemRelease", &driver.release));
  RETURN_IF_ERROR(find("cuMemExportToShareableHandle", &driver.export_handle));
  RETURN_IF_ERROR(
      find("cuMemImportFromShareableHandle", &driver.import_handle));
  RETURN_IF_ERROR(find("cuMemAddressReserve", &driver.reserve));
  RETURN_IF_ERROR(find("cuMemAddressFree", &driver.free));
  RETURN_IF_ERROR(find("cuMemMap", &driver.map));
  RETURN_IF_ERROR(find("cuMemUnmap", &driver.unmap));
  RETURN_IF_ERROR(find("cuMemSetAccess", &driver.set_access));
  RETURN_IF_ERROR(find("cuGetErrorString", &driver.error_string));
  return driver;
}

// The functions, and `gpu` for the calling thread.
absl::StatusOr<const Driver*> DriverFor(int gpu) {
  RETURN_IF_ERROR(UseGpu(gpu));
  static const absl::StatusOr<Driver>* const driver =
      new absl::StatusOr<Driver>(FindDriver());
  if (!driver->ok()) return driver->status();
  return &**driver;
}

absl::Status DriverStatus(const Driver& driver, CUresult result,
                          const std::string& what) {
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  const char* text = nullptr;
  driver.error_string(result, &text);
  const std::string message =
      absl::StrCat(what, ": ", text == nullptr ? "unknown error" : text, " (",
                   static_cast<int>(result), ")");
  switch (result) {
    case CUDA_ERROR_OUT_OF_MEMORY:
      return absl::ResourceExhaustedError(message);
    case CUDA_ERROR_NOT_SUPPORTED:
    case CUDA_ERROR_NOT_PERMITTED:
      return absl::UnavailableError(message);
    default:
      return absl::InternalError(message);
  }
}

// An allocation, as long as this or a mapping of it is there.
class Allocation {
 public:
  Allocation(const Driver* driver, CUmemGenericAllocationHandle handle)
      : driver_(driver), handle_(handle) {}
  ~Allocation() { driver_->release(handle_); }
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;

  CUmemGenericAllocationHandle handle() const { return handle_; }

 private:
  const Driver* const driver_;
  const CUmemGenericAllocationHandle handle_;
};

CUmemAllocationProp PropertiesOn(int gpu) {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = gpu;
  properties.requestedHandleTypes = kDescriptor;
  return properties;
}

absl::StatusOr<std::unique_ptr<Allocation>> Allocate(const Driver& driver,
                                                     int gpu,
                                                     int64_t size_bytes) {
  const CUmemAllocationProp properties = PropertiesOn(gpu);
  size_t granularity = 0;
  RETURN_IF_ERROR(
      DriverStatus(driver,
                   driver.granularity(&granularity, &properties,
                                      CU_MEM_ALLOC_GRANULARITY_MINIMUM),
                   "how a GPU cuts exported memory"));
  if (granularity == 0 || kRegionAlignment % granularity != 0) {
    return absl::UnavailableError(absl::StrCat(
        "a GPU whose exported memory comes in pieces of ", granularity,
        " bytes; regions are multiples of ", kRegionAlignment));
  }
  CUmemGenericAllocationHandle handle = 0;
  RETURN_IF_ERROR(DriverStatus(
      driver,
      driver.create(&handle, static_cast<size_t>(size_bytes), &properties, 0),
      absl::StrCat("allocating ", size_bytes, " bytes of GPU ", gpu)));
  return std::make_unique<Allocation>(&driver, handle);
}

absl::StatusOr<UniqueFd> Export(const Driver& driver,
                                const Allocation& allocation) {
  int fd = -1;
  RETURN_IF_ERROR(DriverStatus(
      driver, driver.export_handle(&fd, allocation.handle(), kDescriptor, 0),
      "exporting memory of a GPU as a descriptor"));
  UniqueFd owned(fd);
  if (::fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) return ErrnoStatus("fcntl");
  return owned;
}

absl::StatusOr<std::unique_ptr<Allocation>> Import(const Driver& driver,
                                                   int fd) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return ErrnoStatus("fstat");
  if (!S_ISCHR(info.st_mode)) {
    return absl::InvalidArgumentError("not memory of a device");
  }
  CUmemGenericAllocationHandle handle = 0;
  void* const descriptor = reinterpret_cast<void*>(static_cast<intptr_t>(fd));
  const absl::Status status = DriverStatus(
      driver, driver.import_handle(&handle, descriptor, kDescriptor),
      "importing a descriptor");
  if (absl::IsInternal(status)) {
    return absl::InvalidArgumentError(status.message());
  }
  RETURN_IF_ERROR(status);
  return std::make_unique<Allocation>(&driver, handle);
}

// Addresses, with or without memory behind them.
class Range {
 public:
  static absl::StatusOr<std::unique_ptr<Range>> Reserve(const Driver* driver,
                                                        int gpu,
                                                        int64_t size_bytes) {
    CUdeviceptr base = 0;
    RETURN_IF_ERROR(DriverStatus(
        *driver,
        driver->reserve(&base, static_cast<size_t>(size_bytes),
                        kRegionAlignment, 0, 0),
        absl::StrCat("an address range of ", size_bytes, " bytes")));
    return std::unique_ptr<Range>(
        new Range(driver, gpu, base, static_cast<size_t>(size_bytes)));
  }
  ~Range() {
    if (!UseGpu(gpu_).ok()) return;
    Unmap();
    driver_->free(base_, size_);
  }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

  std::byte* base() const { return reinterpret_cast<std::byte*>(base_); }

  // REQUIRES: nothing is mapped. On error nothing is, as before.
  absl::Status Map(const Allocation& allocation, Region::Access access) {
    const absl::Status mapped = DriverStatus(
        *driver_, driver_->map(base_, size_, 0, allocation.handle(), 0),
        absl::StrCat("mapping ", size_, " bytes of a GPU"));
    if (!mapped.ok() && !absl::IsResourceExhausted(mapped)) {
      return absl::InvalidArgumentError(
          absl::StrCat(mapped.message(), "; is the memory of that size?"));
    }
    RETURN_IF_ERROR(mapped);
    mapped_ = true;
    CUmemAccessDesc who{};
    who.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    who.location.id = gpu_;
    who.flags = access == Region::Access::kReadWrite
                    ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE
                    : CU_MEM_ACCESS_FLAGS_PROT_READ;
    const absl::Status allowed = DriverStatus(
        *driver_, driver_->set_access(base_, size_, &who, 1),
        absl::StrCat("access of GPU ", gpu_, " to memory that it maps"));
    if (!allowed.ok()) Unmap();
    return allowed;
  }
  void Unmap() {
    if (mapped_) driver_->unmap(base_, size_);
    mapped_ = false;
  }

 private:
  Range(const Driver* driver, int gpu, CUdeviceptr base, size_t size)
      : driver_(driver), gpu_(gpu), base_(base), size_(size) {}

  const Driver* const driver_;
  const int gpu_;
  const CUdeviceptr base_;
  const size_t size_;
  bool mapped_ = false;
};

class GpuRegion final : public Region {
 public:
  GpuRegion(int gpu, UniqueFd fd, std::unique_ptr<Range> range,
            int64_t size_bytes, Access access)
      : Region(std::move(fd), range->base(), size_bytes, access),
        gpu_(gpu),
        range_(std::move(range)) {}

  absl::Status Replace(UniqueFd fd) override {
    ASSIGN_OR_RETURN(const Driver* const driver, DriverFor(gpu_));
    ASSIGN_OR_RETURN(const auto allocation, Import(*driver, fd.get()));
    {
      // Elsewhere first: what cannot be mapped leaves the old memory in place.
      ASSIGN_OR_RETURN(const auto trial,
                       Range::Reserve(driver, gpu_, size_bytes_));
      RETURN_IF_ERROR(trial->Map(*allocation, access_));
    }
    range_->Unmap();
    RETURN_IF_ERROR(range_->Map(*allocation, access_));
    fd_ = std::move(fd);
    return absl::OkStatus();
  }

 private:
  const int gpu_;
  const std::unique_ptr<Range> range_;
};

class GpuRegionMaker final : public RegionMaker {
 public:
  explicit GpuRegionMaker(int gpu) : gpu_(gpu) {}

  RegionClass region_class() const override { return RegionClass::kDevice; }

  absl::StatusOr<std::unique_ptr<Region>> Create(
      const std::string& /*name*/, int64_t size_bytes,
      const RegionOptions& /*options*/) const override {
    RETURN_IF_ERROR(CheckSize(size_bytes));
    ASSIGN_OR_RETURN(const Driver* const driver, DriverFor(gpu_));
    const int64_t rounded = RoundUpToRegion(size_bytes);
    ASSIGN_OR_RETURN(const auto allocation, Allocate(*driver, gpu_, rounded));
    ASSIGN_OR_RETURN(UniqueFd fd, Export(*driver, *allocation));
    ASSIGN_OR_RETURN(auto range, Range::Reserve(driver, gpu_, rounded));
    RETURN_IF_ERROR(range->Map(*allocation, Region::Access::kReadWrite));
    // The driver does not promise what new memory holds.
    RETURN_IF_ERROR(
        CudaStatus(cudaMemset(range->base(), 0, static_cast<size_t>(rounded)),
                   "clearing memory of a GPU"));
    RETURN_IF_ERROR(
        CudaStatus(cudaStreamSynchronize(nullptr), "clearing memory of a GPU"));
    return std::make_unique<GpuRegion>(gpu_, std::move(fd), std::move(range),
                                       rounded, Region::Access::kReadWrite);
  }

  absl::StatusOr<std::unique_ptr<Region>> Map(
      UniqueFd fd, int64_t size_bytes, Region::Access access,
      const RegionOptions& /*options*/) const override {
    RETURN_IF_ERROR(CheckSize(size_bytes));
    ASSIGN_OR_RETURN(const Driver* const driver, DriverFor(gpu_));
    const int64_t rounded = RoundUpToRegion(size_bytes);
    ASSIGN_OR_RETURN(const auto allocation, Import(*driver, fd.get()));
    ASSIGN_OR_RETURN(auto range, Range::Reserve(driver, gpu_, rounded));
    RETURN_IF_ERROR(range->Map(*allocation, access));
    return std::make_unique<GpuRegion>(gpu_, std::move(fd), std::move(range),
                                       rounded, access);
  }

  absl::StatusOr<UniqueFd> ForPeer(const Region& region) const override {
    return Duplicate(region.descriptor());
  }

 private:
  static absl::Status CheckSize(int64_t size_bytes) {
    constexpr int64_t kLargest = int64_t{1} << 46;  // of an address space
    if (size_bytes >= 0 && size_bytes <= kLargest) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("a region of ", size_bytes, " bytes"));
  }

  const int gpu_;
};

}  // namespace

std::unique_ptr<RegionMaker> MakeGpuRegionMaker(int gpu) {
  return std::make_unique<GpuRegionMaker>(gpu);
}

absl::Status CheckGpuRegions(int gpu) {
  const GpuRegionMaker maker(gpu);
  ASSIGN_OR_RETURN(const auto region, maker.Create("probe", 1, {}));
  ASSIGN_OR_RETURN(UniqueFd fd, maker.ForPeer(*region));
  return maker.Map(std::move(fd), 1, Region::Access::kReadOnly, {}).status();
}

}  // namespace moebius
