/* UDP connections, each from the next port of a shuffled free list, with
 * SO_REUSEADDR as a lock around a lookup of the 4-tuple.
 *
 * bench/ways.py has the same fill in Python: the difference is what the language costs.
 */

#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

#include "fill.h"

struct request {
	struct nlmsghdr header;
	struct inet_diag_req_v2 diag;
};

struct reply {
	struct nlmsghdr header;
	struct inet_diag_msg diag;
	char attributes[512];
};

/* Whether ours is the socket that a datagram from the destination would reach. */
static int is_ours(int netlink, const struct sockaddr_in *source,
                   const struct sockaddr_in *destination, const uint32_t cookie[2])
{
	/* An exact lookup takes the two ends as a datagram would carry them
	 * that comes in: the destination is its source (udp_dump_one). */
	const struct request request = {
		.header = {
			.nlmsg_len = sizeof request,
			.nlmsg_type = SOCK_DIAG_BY_FAMILY,
			.nlmsg_flags = NLM_F_REQUEST,
		},
		.diag = {
			.sdiag_family = AF_INET,
			.sdiag_protocol = IPPROTO_UDP,
			.idiag_states = ~0u,
			.id = {
				.idiag_sport = destination->sin_port,
				.idiag_dport = source->sin_port,
				.idiag_src = {destination->sin_addr.s_addr},
				.idiag_dst = {source->sin_addr.s_addr},
				.idiag_cookie = {INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE},
			},
		},
	};
	struct reply reply;

	if (send(netlink, &request, sizeof request, 0) < 0 ||
	    recv(netlink, &reply, sizeof reply, 0) < 0)
		return -1;
	if (reply.header.nlmsg_type != SOCK_DIAG_BY_FAMILY) {
		errno = EPROTO;
		return -1;
	}
	return !memcmp(reply.diag.id.idiag_cookie, cookie, sizeof reply.diag.id.idiag_cookie);
}

static int open_one(int netlink, const struct sockaddr_in *source,
                    const struct sockaddr_in *destination)
{
	const int on = 1, off = 0;
	uint32_t cookie[2];
	socklen_t size = sizeof cookie;
	const int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int ours;

	if (sock < 0 ||
	    getsockopt(sock, SOL_SOCKET, SO_COOKIE, cookie, &size) < 0 ||
	    setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
	    bind(sock, (const struct sockaddr *)source, sizeof *source) < 0 ||
	    setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &off, sizeof off) < 0)
		return -1;
	ours = is_ours(netlink, source, destination, cookie);
	if (ours < 0)
		return -1;
	if (!ours) {
		errno = EADDRINUSE;
		return -1;
	}
	if (connect(sock, (const struct sockaddr *)destination, sizeof *destination) < 0 ||
	    setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0)
		return -1;
	return sock;
}

/* Opens count connections; descriptors and times receive one entry each,
 * a time in nanoseconds, negative for one that was interrupted.
 * netlink is a NETLINK_SOCK_DIAG socket. Returns how many were opened: fewer
 * than count when a system call failed, with errno as it left it.
 */
size_t fill_udp(int netlink, const struct sockaddr_in *source,
                const struct sockaddr_in *destinations, const uint16_t *ports,
                size_t count, int *descriptors, int64_t *times)
{
	struct sockaddr_in from = *source;

	for (size_t i = 0; i < count; i++) {
		const long before = interruptions();
		const int64_t start = now();
		int64_t spent;

		from.sin_port = htons(ports[i]);
		descriptors[i] = open_one(netlink, &from, &destinations[i]);
		if (descriptors[i] < 0)
			return i;
		spent = now() - start;
		times[i] = interruptions() == before ? spent : -spent;
	}
	return count;
}
