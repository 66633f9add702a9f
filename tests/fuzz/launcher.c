/* Gives each case on stdin, length first, to what the launcher parses. Built with sanitizers; the
 * buffers are as long as the case, so that one byte too far is seen. */
#include <stdio.h>
#include <stdlib.h>

#include "../../hypercore/shim/launcher_info.h"

int main(void)
{
    uint32_t size;
    unsigned long cases = 0, found = 0;
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        uint8_t *data = malloc(size ? size : 1);
        char *ttrpc = malloc(32);
        if (!data || !ttrpc || fread(data, 1, size, stdin) != size)
            return 2;
        found += is_bootstrap(data, size, "id", "ns", ttrpc, 32);
        uint64_t code;
        const char *text;
        int length;
        if (read_status(data, size, &code, &text, &length))
            for (int i = 0; i < length; i++)
                found += text[i] == 'x';
        free(data);
        free(ttrpc);
        cases++;
    }
    uint8_t *info = malloc(2048);
    found += runtime_info(info, "0") + registration(info, "id");
    free(info);
    printf("%lu %lu\n", cases, found);
    return 0;
}
