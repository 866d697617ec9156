/* TCP connections, each from the next port of a shuffled free list, which it
 * asks for with a window of that port alone (IP_LOCAL_PORT_RANGE).
 *
 * bench/ways.py has the same fill in Python: the difference is what the language costs.
 */

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <time.h>

#include "fill.h"

/* Debian 12's headers lack it; linux/in.h, Linux 6.3. */
#define IP_LOCAL_PORT_RANGE 51

static int open_one(const struct sockaddr_in *source,
                    const struct sockaddr_in *destination, uint16_t port)
{
	const int on = 1;
	const uint32_t window = port | (uint32_t)port << 16;
	const int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (sock < 0 ||
	    setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
	    setsockopt(sock, IPPROTO_IP, IP_LOCAL_PORT_RANGE, &window, sizeof window) < 0)
		return -1;
	if (source &&
	    (setsockopt(sock, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on) < 0 ||
	     bind(sock, (const struct sockaddr *)source, sizeof *source) < 0))
		return -1;
	if (connect(sock, (const struct sockaddr *)destination, sizeof *destination) < 0)
		return -1;
	return sock;
}

/* Opens count connections; descriptors and times receive one entry each,
 * a time in nanoseconds, negative for one that was interrupted.
 * source is NULL for any, else an address with port 0. Returns how many were
 * opened: fewer than count when a system call failed, with errno as it left it.
 */
size_t fill_tcp(const struct sockaddr_in *source,
                const struct sockaddr_in *destinations, const uint16_t *ports,
                size_t count, int *descriptors, int64_t *times)
{
	for (size_t i = 0; i < count; i++) {
		const long before = interruptions();
		const int64_t start = now();
		int64_t spent;

		descriptors[i] = open_one(source, &destinations[i], ports[i]);
		if (descriptors[i] < 0)
			return i;
		spent = now() - start;
		times[i] = interruptions() == before ? spent : -spent;
	}
	return count;
}
