#include "tenon/comm/transport/fd_passing.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <random>
#include <string>

#include "tenon/comm/messages.h"

namespace tenon {
namespace {

constexpr std::size_t kNameOffset = offsetof(sockaddr_un, sun_path);

// Room for one descriptor beside a message.
union Attachment {
  cmsghdr header;
  char bytes[CMSG_SPACE(sizeof(int))];
};

}  // namespace

Status FilePost::bind_own(Address& own) {
  socket_.number = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (socket_.number < 0) return system_failed("make a socket for files", errno);
  sockaddr_un place{};
  place.sun_family = AF_UNIX;
  // With no name given the kernel makes up one that is free.
  if (bind(socket_.number, reinterpret_cast<sockaddr*>(&place), sizeof place.sun_family) != 0)
    return system_failed("name a socket for files", errno);
  socklen_t bytes = sizeof place;
  if (getsockname(socket_.number, reinterpret_cast<sockaddr*>(&place), &bytes) != 0)
    return system_failed("read the name of a socket for files", errno);
  own.name_bytes = static_cast<std::uint32_t>(bytes - kNameOffset);
  if (own.name_bytes > sizeof own.name)
    return Status::error(Code::kIo, "the name of a socket for files has " +
                                        std::to_string(own.name_bytes) + " bytes; accepted: 16");
  std::memcpy(own.name, place.sun_path, own.name_bytes);
  std::random_device device;
  own.secret = std::uint64_t{device()} << 32 | device();
  return Status::ok();
}

Status FilePost::open(std::chrono::milliseconds deadline) {
  Address own;
  TENON_TRY(agree(bootstrap_, bind_own(own), "sockets for files", deadline));
  addresses_.resize(static_cast<std::size_t>(bootstrap_.size()));
  return bootstrap_.exchange(bytes_of(own), std::as_writable_bytes(std::span(addresses_)),
                             "sockets for files", deadline);
}

Status FilePost::send(int peer, int file) const {
  const Address& to = addresses_[static_cast<std::size_t>(peer)];
  Letter letter{to.secret, bootstrap_.rank(), number_};
  sockaddr_un place{};
  place.sun_family = AF_UNIX;
  std::memcpy(place.sun_path, to.name, to.name_bytes);
  iovec text{&letter, sizeof letter};
  Attachment attachment{};
  msghdr message{};
  message.msg_name = &place;
  message.msg_namelen = static_cast<socklen_t>(kNameOffset + to.name_bytes);
  message.msg_iov = &text;
  message.msg_iovlen = 1;
  message.msg_control = &attachment;
  message.msg_controllen = sizeof attachment.bytes;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof file);
  std::memcpy(CMSG_DATA(header), &file, sizeof file);
  ssize_t sent = 0;
  do {
    sent = sendmsg(socket_.number, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent == static_cast<ssize_t>(sizeof letter)) return Status::ok();
  return system_failed("send a file to rank " + std::to_string(peer), sent < 0 ? errno : EIO);
}

// Takes the next letter that lies here, and the file that came in it; false where there is none.
bool FilePost::receive(Letter& letter, Descriptor& file) const {
  iovec text{&letter, sizeof letter};
  Attachment attachment{};
  msghdr message{};
  message.msg_iov = &text;
  message.msg_iovlen = 1;
  message.msg_control = &attachment;
  message.msg_controllen = sizeof attachment.bytes;
  ssize_t got = 0;
  do {
    got = recvmsg(socket_.number, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0) return false;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header))
    if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
      std::memcpy(&file.number, CMSG_DATA(header), sizeof file.number);
  if (got != static_cast<ssize_t>(sizeof letter)) letter = {};  // a stranger's
  return true;
}

// Everything that lies here, as the peers' files.
Status FilePost::collect(std::span<Descriptor> files) const {
  const int rank = bootstrap_.rank(), size = bootstrap_.size();
  const std::uint64_t secret = addresses_[static_cast<std::size_t>(rank)].secret;
  for (;;) {
    Letter letter;
    Descriptor file;
    if (!receive(letter, file)) break;
    const bool ours = letter.secret == secret && letter.number == number_ && letter.from >= 0 &&
                      letter.from < size && letter.from != rank;
    if (ours) files[static_cast<std::size_t>(letter.from)] = std::move(file);
  }
  for (int peer = 0; peer < size; ++peer)
    if (peer != rank && files[static_cast<std::size_t>(peer)].number < 0)
      return Status::error(Code::kIo, "the file of rank " + std::to_string(peer) +
                                          " did not arrive; too many may be open here");
  return Status::ok();
}

Result<std::vector<Descriptor>> FilePost::exchange(int mine, std::string_view label,
                                                   std::chrono::milliseconds deadline) {
  const int rank = bootstrap_.rank(), size = bootstrap_.size();
  ++number_;
  Status sent;
  for (int hop = 1; hop < size && sent; ++hop) sent = send((rank + hop) % size, mine);
  // What was sent lies in its receiver's socket: when all have sent, nobody waits.
  sent = agree(bootstrap_, sent, label, deadline);
  if (sent.code() == Code::kTimeout || sent.code() == Code::kPeerLost) return sent;
  std::vector<Descriptor> files(static_cast<std::size_t>(size));
  const Status collected = collect(files);
  // When all have collected, the sockets are empty for the next time.
  const Status agreed = agree(bootstrap_, sent ? collected : Status::ok(), label, deadline);
  TENON_TRY(sent);
  TENON_TRY(agreed);
  return files;
}

}  // namespace tenon
