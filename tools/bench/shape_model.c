/* bench/shape_model.c - one rank's part of a model. See shape_model.h.
 *
 * Tensor parallel ranks cut matrices along one dimension (columns' outputs by rows, rows' inputs by columns); what is not cut
 * is saved by the first of them. Pipeline stages hold adjacent layers, the first the embedding, the last the head. Data
 * parallel ranks share the optimizer's state (ZeRO 1), or everything (ZeRO 3), along the first dimension.
 *
 * scale= takes layers away, and of the embedding and head as many rows, so that each class keeps its share; below one layer it
 * takes rows of every tensor.
 */
#include "shape_model.h"
#include "nearest.h"

#include <base/checked.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum family { FAMILY_GPT2, FAMILY_LLAMA };
enum cut { CUT_NONE, CUT_ROWS, CUT_COLUMNS }; /* by tensor parallel ranks */
enum part { PART_EMBEDDING, PART_ATTENTION, PART_MLP, PART_NORM, PART_HEAD };

struct model {
    const char *name;
    enum family family;
    uint64_t layers, width, hidden, key_values, vocabulary, positions; /* key_values: rows of k_proj */
    uint64_t tp, pp, dp;     /* as MLPerf Storage v2 has them */
    bool shares_weights;     /* ZeRO 3 */
};

/* Meta's and OpenAI's configurations; mlperf-1t as in MLPerf Storage v2's llama3_1t. */
static const struct model models[] = {
    { "gpt2-124m", FAMILY_GPT2, 12, 768, 3072, 768, 50257, 1024, 1, 1, 1, false },
    { "gpt2-xl", FAMILY_GPT2, 48, 1600, 6400, 1600, 50257, 1024, 1, 1, 1, false },
    { "llama3-8b", FAMILY_LLAMA, 32, 4096, 14336, 1024, 128256, 0, 1, 1, 8, true },
    { "llama3-70b", FAMILY_LLAMA, 80, 8192, 28672, 1024, 128256, 0, 8, 1, 8, true },
    { "llama3-405b", FAMILY_LLAMA, 126, 16384, 53248, 1024, 128256, 0, 8, 32, 2, false },
    { "mlperf-1t", FAMILY_LLAMA, 128, 25872, 98304, 4288, 128256, 0, 8, 64, 2, false },
};
#define MODEL_COUNT (sizeof models / sizeof *models)

/* One parameter of a layer, or of the ends. */
struct parameter { const char *name; uint64_t rows, columns; enum cut cut; enum part part; };

/* One rank's view while its tensors are made. */
struct maker {
    const struct model *model;
    struct shape *shape;
    uint64_t tp_rank, pp_rank, dp_rank;
    uint64_t layers;         /* after scale= */
    double rows_share;       /* of every tensor; 1 unless scale= is below one layer */
    double ends_share;       /* of the rows of embedding and head */
    bool failed;
};

static const struct model *model_find(const char *name)
{
    for (size_t i = 0; i < MODEL_COUNT; i++)
        if (strcmp(models[i].name, name) == 0)
            return &models[i];
    return NULL;
}

bool shape_model_knows(const char *name) { return model_find(name) != NULL; }

int shape_model_unknown(const char *name, struct complaint *complaint)
{
    const char *words[MODEL_COUNT], *near;
    char known[256] = "";
    size_t used = 0;

    for (size_t i = 0; i < MODEL_COUNT; i++) {
        words[i] = models[i].name;
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", models[i].name);
    }
    near = nearest_word(name, words, MODEL_COUNT);
    return complaint_set(complaint, "shape: there is no '%.60s'%s%s%s: a shape is one of %s, a path to a .safetensors file, or "
                         "'16 x 64m'", name, near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "", known);
}

/* Sharding ----------------------------------------------------------------------------------------------------------- */

/* The `number`th of `count` nearly equal parts of `total`: as torch.chunk cuts, the last ones may be smaller or empty. */
static void part_of(uint64_t total, uint64_t number, uint64_t count, uint64_t *offset, uint64_t *size)
{
    uint64_t each = divide_up(total, count);

    *offset = min_u64(number * each, total);
    *size = min_u64(each, total - *offset);
}

static const char *kind_of(enum part part, bool optimizer)
{
    static const char *const kinds[2][5] = {
        { "model.embedding", "model.attention", "model.mlp", "model.norm", "model.head" },
        { "optimizer.embedding", "optimizer.attention", "optimizer.mlp", "optimizer.norm", "optimizer.head" },
    };

    return kinds[optimizer][part];
}

static void tensor_add(struct maker *maker, const char *prefix, const char *name, const struct parameter *parameter,
                       enum tspool_dtype dtype, bool shares_rows, bool optimizer)
{
    const struct shape *shape = maker->shape;
    struct shape_tensor tensor = { .dtype = dtype, .rank = parameter->columns ? 2 : 1,
                                  .kind = kind_of(parameter->part, optimizer) };
    uint64_t size[2] = { parameter->rows, parameter->columns ? parameter->columns : 1 }, offset[2] = { 0, 0 };
    unsigned along = parameter->cut == CUT_COLUMNS;
    uint64_t within;

    if (parameter->cut == CUT_NONE ? maker->tp_rank != 0 : false)
        return;
    if (!shares_rows && maker->dp_rank != 0)
        return;
    if (parameter->cut != CUT_NONE)
        part_of(size[along], maker->tp_rank, shape->tp, &offset[along], &size[along]);
    if (shares_rows) {
        part_of(size[0], maker->dp_rank, shape->dp, &within, &size[0]);
        offset[0] += within;
    }
    if (size[0] == 0 || size[1] == 0)
        return;
    for (unsigned d = 0; d < 2; d++) {
        tensor.shape[d] = size[d];
        tensor.global_shape[d] = d ? parameter->columns : parameter->rows;
        tensor.global_offsets[d] = offset[d];
    }
    tensor.is_sharded = shape->tp * shape->pp * shape->dp > 1;
    snprintf(tensor.name, sizeof tensor.name, "%s%s", prefix, name);
    if (shape_append(maker->shape, &tensor) < 0)
        maker->failed = true;
}

/* A parameter and what Adam keeps of it. */
static void parameter_add(struct maker *maker, const char *name, struct parameter parameter)
{
    const struct model *model = maker->model;
    bool mixed = model->family == FAMILY_LLAMA; /* GPT-2 is trained in F32, which needs no master weights */
    bool is_end = parameter.part == PART_EMBEDDING || parameter.part == PART_HEAD;
    double share = maker->rows_share * (is_end ? maker->ends_share : 1);

    parameter.rows = max_u64((uint64_t)((double)parameter.rows * share + 0.5), 1);
    tensor_add(maker, "model.", name, &parameter, mixed ? TSPOOL_BF16 : TSPOOL_F32, model->shares_weights, false);
    if (mixed)
        tensor_add(maker, "optimizer.master.", name, &parameter, TSPOOL_F32, true, true);
    tensor_add(maker, "optimizer.exp_avg.", name, &parameter, TSPOOL_F32, true, true);
    tensor_add(maker, "optimizer.exp_avg_sq.", name, &parameter, TSPOOL_F32, true, true);
}

/* Models ------------------------------------------------------------------------------------------------------------- */

#define LAYER_PARAMETERS 12u

static unsigned layer_of(const struct model *model, struct parameter out[LAYER_PARAMETERS])
{
    uint64_t w = model->width, h = model->hidden, k = model->key_values;
    const struct parameter gpt2[] = {
        { "ln_1.weight", w, 0, CUT_NONE, PART_NORM }, { "ln_1.bias", w, 0, CUT_NONE, PART_NORM },
        { "attn.c_attn.weight", w, 3 * w, CUT_COLUMNS, PART_ATTENTION },
                { "attn.c_attn.bias", 3 * w, 0, CUT_ROWS, PART_ATTENTION },
        { "attn.c_proj.weight", w, w, CUT_ROWS, PART_ATTENTION }, { "attn.c_proj.bias", w, 0, CUT_NONE, PART_ATTENTION },
        { "ln_2.weight", w, 0, CUT_NONE, PART_NORM }, { "ln_2.bias", w, 0, CUT_NONE, PART_NORM },
        { "mlp.c_fc.weight", w, h, CUT_COLUMNS, PART_MLP }, { "mlp.c_fc.bias", h, 0, CUT_ROWS, PART_MLP },
        { "mlp.c_proj.weight", h, w, CUT_ROWS, PART_MLP }, { "mlp.c_proj.bias", w, 0, CUT_NONE, PART_MLP },
    };
    const struct parameter llama[] = {
        { "input_layernorm.weight", w, 0, CUT_NONE, PART_NORM }, { "self_attn.q_proj.weight", w, w, CUT_ROWS, PART_ATTENTION },
        { "self_attn.k_proj.weight", k, w, CUT_ROWS, PART_ATTENTION },
                { "self_attn.v_proj.weight", k, w, CUT_ROWS, PART_ATTENTION },
        { "self_attn.o_proj.weight", w, w, CUT_COLUMNS, PART_ATTENTION },
        { "post_attention_layernorm.weight", w, 0, CUT_NONE, PART_NORM }, { "mlp.gate_proj.weight", h, w, CUT_ROWS, PART_MLP },
        { "mlp.up_proj.weight", h, w, CUT_ROWS, PART_MLP }, { "mlp.down_proj.weight", w, h, CUT_COLUMNS, PART_MLP },
    };
    bool is_gpt2 = model->family == FAMILY_GPT2;

    memcpy(out, is_gpt2 ? gpt2 : llama, is_gpt2 ? sizeof gpt2 : sizeof llama);
    return is_gpt2 ? sizeof gpt2 / sizeof *gpt2 : sizeof llama / sizeof *llama;
}

static void layer_add(struct maker *maker, uint64_t number)
{
    struct parameter layer[LAYER_PARAMETERS];
    unsigned count = layer_of(maker->model, layer);
    char name[96];

    for (unsigned i = 0; i < count; i++) {
        snprintf(name, sizeof name, "%s.%" PRIu64 ".%s", maker->model->family == FAMILY_GPT2 ? "transformer.h" : "layers", number,
                 layer[i].name);
        parameter_add(maker, name, layer[i]);
    }
}

static void first_add(struct maker *maker)
{
    const struct model *model = maker->model;

    if (model->family == FAMILY_LLAMA) {
        parameter_add(maker, "embed_tokens.weight",
                      (struct parameter){ NULL, model->vocabulary, model->width, CUT_ROWS, PART_EMBEDDING });
        return;
    }
    parameter_add(maker, "transformer.wte.weight",
                  (struct parameter){ NULL, model->vocabulary, model->width, CUT_ROWS, PART_EMBEDDING });
    parameter_add(maker, "transformer.wpe.weight",
                  (struct parameter){ NULL, model->positions, model->width, CUT_NONE, PART_EMBEDDING });
}

/* GPT-2's head is tied to its embedding: stored once. */
static void last_add(struct maker *maker)
{
    const struct model *model = maker->model;

    if (model->family == FAMILY_GPT2) {
        parameter_add(maker, "transformer.ln_f.weight", (struct parameter){ NULL, model->width, 0, CUT_NONE, PART_NORM });
        parameter_add(maker, "transformer.ln_f.bias", (struct parameter){ NULL, model->width, 0, CUT_NONE, PART_NORM });
        return;
    }
    parameter_add(maker, "norm.weight", (struct parameter){ NULL, model->width, 0, CUT_NONE, PART_NORM });
    parameter_add(maker, "lm_head.weight", (struct parameter){ NULL, model->vocabulary, model->width, CUT_ROWS, PART_HEAD });
}

static uint64_t model_parameters(const struct model *model)
{
    struct parameter layer[LAYER_PARAMETERS];
    unsigned count = layer_of(model, layer);
    uint64_t of_layer = 0, ends;

    for (unsigned i = 0; i < count; i++)
        of_layer += layer[i].rows * (layer[i].columns ? layer[i].columns : 1);
    ends = model->family == FAMILY_GPT2 ? (model->vocabulary + model->positions + 2) * model->width
                                        : (2 * model->vocabulary + 1) * model->width;
    return of_layer * model->layers + ends;
}

/* Ranks -------------------------------------------------------------------------------------------------------------- */

/* ranks= and any of tp= pp= dp=: what is not given follows; nothing given: as MLPerf Storage has it. */
static int parallelism_of(const struct job *job, const struct model *model, struct shape *shape, struct complaint *complaint)
{
    bool given = job->tp || job->pp || job->dp || job->ranks;

    shape->tp = job->tp ? job->tp : given ? 1 : model->tp;
    shape->pp = job->pp ? job->pp : given ? 1 : model->pp;
    shape->dp = job->dp ? job->dp : !given ? model->dp : job->ranks ? max_u64(job->ranks / (shape->tp * shape->pp), 1) : 1;
    shape->world_size = shape->tp * shape->pp * shape->dp;
    if (job->ranks && job->ranks != shape->world_size)
        return complaint_set(complaint, "ranks=%" PRIu64 " is not tp=%" PRIu64 " times pp=%" PRIu64 " times dp=%" PRIu64,
                             job->ranks,
                             shape->tp, shape->pp, shape->dp);
    if (job->rank + job->numjobs > shape->world_size)
        return complaint_set(complaint, "rank=%" PRIu64 " with numjobs=%" PRIu64 " goes beyond the %" PRIu64 " ranks of %s",
                             job->rank,
                             job->numjobs, shape->world_size, model->name);
    return 0;
}

int shape_model_make(const struct job *job, unsigned member, struct shape *shape, struct complaint *complaint)
{
    const struct model *model = model_find(job->shape);
    struct maker maker = { .model = model, .shape = shape, .rows_share = 1 };
    uint64_t rank = job->rank + member, first, count;
    double layers = (double)model->layers * job->scale;

    if (parallelism_of(job, model, shape, complaint) < 0)
        return -1;
    maker.layers = max_u64((uint64_t)(layers + 0.5), 1);
    if (shape->pp > maker.layers)
        return complaint_set(complaint, "pp=%" PRIu64 " is more than the %" PRIu64 " layer(s) that scale=%g leaves of %s: "
                             "give pp=1",
                             shape->pp, maker.layers, job->scale, model->name);
    maker.ends_share = (double)maker.layers / (double)model->layers;
    maker.rows_share = layers < 1 ? layers : 1;
    shape->parameters = model_parameters(model);
    maker.tp_rank = rank % shape->tp;
    maker.pp_rank = rank / shape->tp % shape->pp;
    maker.dp_rank = rank / (shape->tp * shape->pp);
    first = maker.pp_rank * (maker.layers / shape->pp) + min_u64(maker.pp_rank, maker.layers % shape->pp);
    count = maker.layers / shape->pp + (maker.pp_rank < maker.layers % shape->pp);
    if (maker.pp_rank == 0)
        first_add(&maker);
    for (uint64_t i = first; i < first + count; i++)
        layer_add(&maker, i);
    if (maker.pp_rank == shape->pp - 1)
        last_add(&maker);
    return maker.failed ? complaint_set(complaint, "shape: out of memory") : 0;
}
