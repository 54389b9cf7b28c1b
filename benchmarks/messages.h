/* The messages that devices and apps send, each with its sending time in it. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct message {
    char *bytes;
    size_t length;
    char *stamp;                  /* where the sending time goes; NULL for a ping */
    bool binary;
};

/* Make the one message that is sent from now on: JSON text, or a MessagePack map. */
void compose_message(const char *kind, size_t size, bool binary);

/* Make those that a fleet of machines says, most of them off: MessagePack, two logs in a thousand, and pings.
 * Return how many of them, with the pings, a machine says in a second. */
double compose_fleet(void);

/* Return the next message with the time in it; of a fleet, one of its kinds at random. */
const struct message *next_message(void);

/* Return when a message was sent in µs of the monotonic clock, or -1 when it is the relay's own talk. */
double sending_time_us(const char *payload, size_t length);
