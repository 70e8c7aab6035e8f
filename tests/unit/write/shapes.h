/* The checkpoints that these tests write. */
#ifndef UNIT_WRITE_SHAPES_H
#define UNIT_WRITE_SHAPES_H

#include "../../support/fake_trainer.h"
#include "../../support/tap_io.h"

#include <base/checked.h>
#include <criterion/criterion.h>

/* One small file that ends between two multiples of 4096, with a tensor of each kind of size: whole, odd, empty. */
#define SMALL_FILES ((struct fake_file[]){ { "model.safetensors", 20000, { 8192, 0, 7001, 1 }, 4 } })
#define SMALL_NAMES ((const char *[]){ "model.safetensors", "objects-00001.bin", "tspool.digests", "tspool.manifest.json", NULL })

/* Two files of three and two chunks; leaves straddle every chunk's end: the tensors begin at odd places. */
#define LARGE_FILES ((struct fake_file[]){ \
    { "model-00001-of-00002.safetensors", MIB(36) + 12345, { MIB(18) + 1, MIB(18), 4096 }, 3 }, \
    { "model-00002-of-00002.safetensors", MIB(17), { MIB(3), MIB(9) + 5, MIB(5) - 6 - 4096, 1 }, 4 } })
#define LARGE_CHUNKS 5u

#define NAMES(...) ((const char *[]){ __VA_ARGS__, NULL })
#define NO_NAMES ((const char *[]){ NULL })

#endif
