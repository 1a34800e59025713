#include "worker/peers/nccl.h"

#include <dlfcn.h>
#include <nccl.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

static_assert(sizeof(ncclUniqueId) == sizeof(NcclId));

// The functions of the library that we call.
struct NcclLibrary {
  decltype(&ncclGetErrorString) error_string = nullptr;
  decltype(&ncclGetUniqueId) get_unique_id = nullptr;
  decltype(&ncclCommInitRankConfig) comm_init_rank = nullptr;
  decltype(&ncclCommAbort) comm_abort = nullptr;
  decltype(&ncclGroupStart) group_start = nullptr;
  decltype(&ncclGroupEnd) group_end = nullptr;
  decltype(&ncclSend) send = nullptr;
  decltype(&ncclRecv) receive = nullptr;
};

template <typename Function>
bool Resolve(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

// It stays open: its threads may outlive a communicator. Multicast over NVLink
// is left off unless the environment asks for it.
absl::StatusOr<NcclLibrary> Open() {
  setenv("NCCL_NVLS_ENABLE", "0", 0);
  void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("NCCL is not on this machine (", dlerror(),
                     "); install it, or say where it is in LD_LIBRARY_PATH"));
  }
  NcclLibrary nccl;
  if (!Resolve(library, "ncclGetErrorString", nccl.error_string) ||
      !Resolve(library, "ncclGetUniqueId", nccl.get_unique_id) ||
      !Resolve(library, "ncclCommInitRankConfig", nccl.comm_init_rank) ||
      !Resolve(library, "ncclCommAbort", nccl.comm_abort) ||
      !Resolve(library, "ncclGroupStart", nccl.group_start) ||
      !Resolve(library, "ncclGroupEnd", nccl.group_end) ||
      !Resolve(library, "ncclSend", nccl.send) ||
      !Resolve(library, "ncclRecv", nccl.receive)) {
    return absl::UnavailableError(absl::StrCat(
        "libnccl.so.2 is too old (", dlerror(), "); 2.18 or later is needed"));
  }
  return nccl;
}

const absl::StatusOr<NcclLibrary>& Library() {
  static const auto* const library = new absl::StatusOr<NcclLibrary>(Open());
  return *library;
}

absl::Status NcclStatus(const NcclLibrary& nccl, ncclResult_t result,
                        const char* what) {
  if (result == ncclSuccess) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("NCCL, ", what, ": ", nccl.error_string(result)));
}

class OpenedNcclGroup final : public NcclGroup {
 public:
  OpenedNcclGroup(const NcclLibrary& nccl, ncclComm_t communicator)
      : nccl_(nccl), communicator_(communicator) {}
  ~OpenedNcclGroup() override { nccl_.comm_abort(communicator_); }

  absl::Status Begin() override {
    return NcclStatus(nccl_, nccl_.group_start(), "begin of a group");
  }
  absl::Status End() override {
    return NcclStatus(nccl_, nccl_.group_end(), "end of a group");
  }
  absl::Status Send(const void* from, int64_t size_bytes, Rank to,
                    CUstream_st* stream) override {
    return NcclStatus(nccl_,
                      nccl_.send(from, static_cast<size_t>(size_bytes),
                                 ncclUint8, to, communicator_, stream),
                      "send");
  }
  absl::Status Receive(void* to, int64_t size_bytes, Rank from,
                       CUstream_st* stream) override {
    return NcclStatus(nccl_,
                      nccl_.receive(to, static_cast<size_t>(size_bytes),
                                    ncclUint8, from, communicator_, stream),
                      "receive");
  }

 private:
  const NcclLibrary& nccl_;
  const ncclComm_t communicator_;
};

}  // namespace

absl::Status NcclGroup::Find() { return Library().status(); }

absl::StatusOr<NcclId> NcclGroup::MakeId() {
  RETURN_IF_ERROR(Find());
  ncclUniqueId id;
  RETURN_IF_ERROR(
      NcclStatus(*Library(), Library()->get_unique_id(&id), "an id"));
  NcclId bytes;
  std::memcpy(bytes.data(), &id, bytes.size());
  return bytes;
}

absl::StatusOr<std::unique_ptr<NcclGroup>> NcclGroup::Create(const NcclId& id,
                                                             int num_ranks,
                                                             Rank rank) {
  RETURN_IF_ERROR(Find());
  const NcclLibrary& nccl = *Library();
  ncclUniqueId bytes;
  std::memcpy(&bytes, id.data(), id.size());
  ncclComm_t communicator = nullptr;
  RETURN_IF_ERROR(NcclStatus(
      nccl, nccl.comm_init_rank(&communicator, num_ranks, bytes, rank, nullptr),
      "a communicator"));
  return std::make_unique<OpenedNcclGroup>(nccl, communicator);
}

}  // namespace moebius
