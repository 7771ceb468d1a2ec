/* A fake of Metal and of the Objective-C runtime, in one library, for our ctypes binding.
 *
 * Proves: which messages we send and how their answers are read. Cannot prove: that macOS answers so.
 * FAKE_METAL: "" (a 36 GB Mac), "none" (no device, as in a virtual machine).
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static char device[] = "device", name[] = "name";

void *MTLCreateSystemDefaultDevice(void) {
  const char *scenario = getenv("FAKE_METAL");
  return scenario != NULL && strcmp(scenario, "none") == 0 ? NULL : device;
}

void *sel_registerName(const char *selector) { return strdup(selector); }

uintptr_t objc_msgSend(void *receiver, void *selector) {
  /* Metal and the runtime are two copies of this library: objects are told apart by what they hold. */
  if (strcmp(receiver, name) == 0) return strcmp(selector, "UTF8String") == 0 ? (uintptr_t) "Apple M3 Pro" : 0;
  if (strcmp(receiver, device) != 0) return 0;
  if (strcmp(selector, "name") == 0) return (uintptr_t)name;
  if (strcmp(selector, "recommendedMaxWorkingSetSize") == 0) return 28991029248U;
  return strcmp(selector, "hasUnifiedMemory") == 0;
}
