// Rendezvous: the processes of a job find each other. Process 0 listens at an address that all know; the
// others connect to it, as often as it takes, and say who they are. When all are there each gets the table of
// all, connects to those before it, and is connected to by those behind it; when all have all links, they go.
//
// Whoever connects and says nothing, something else or the word of another job is left out and holds nobody
// up. The token keeps jobs apart that meet at one address by mistake; it goes in clear text and protects from
// nobody: the network is taken to be trusted.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/quantity.h"
#include "comm/message/wire.h"
#include "comm/tcp/socket.h"

namespace tessera::comm::tcp {

struct Meeting {
  std::string host;  // of process 0: a name or an address
  std::int32_t port = 0;
  std::int32_t process = 0, processes = 1;
  std::string token;    // of the job, at most 255 bytes
  std::string version;  // of the program, at most 63 bytes: all must have the same
  Seconds timeout = Seconds(300.0);
  // Where process 0 listens; empty: at what `host` is there. "0.0.0.0": at all addresses of its host.
  std::string bind;
  Socket listener;  // of process 0, where one listens already; else it opens one
};

struct Links {
  std::vector<message::Wire::Peer> peers;  // of every process, this one included
  std::vector<Socket> sockets;             // to each; not open: this one
};

// Waits for all. Error{config} for what contradicts (two processes with one rank, other sizes, other
// versions, another token), Error{comm} when an address cannot be had or reached or the time is over; it
// names the ranks that are missing. One process that fails tells the others, which fail too.
[[nodiscard]] Links meet(Meeting meeting);

}  // namespace tessera::comm::tcp
