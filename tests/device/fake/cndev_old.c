/* The fake cndev of a driver 5, which resolves no handles: the card number is the handle. Asked with FAKE_CNDEV=old. */
#define FAKE_WITHOUT_HANDLES
#include "cndev.c"
