/* base/mutant.h - bugs that the tests plant, to see that they would be noticed. tests/mutants/ builds the engine once more
 * with TSPOOL_MUTANTS, plants one at a time and runs the suite against it: each must make a test fail.
 *
 * In every other build MUTANT(NAME) is the constant 0, and the line that asks is gone. A mutant is one line at the place
 * where somebody could make that mistake; its sentence says what is wrong with the engine that has it.
 */
#ifndef BASE_MUTANT_H
#define BASE_MUTANT_H

/* The test suite that looks for it first, its name, a sentence. */
#define MUTANTS(X) \
    X(crash, FIRST_SHARD_UNSYNCED, "the first shard file is not synced") \
    X(crash, LAST_SHARD_UNSYNCED, "the last shard file is not synced") \
    X(crash, TEXTS_UNSYNCED, "objects and index are not synced") \
    X(crash, DIGESTS_UNSYNCED, "the digests file is not synced") \
    X(crash, MANIFEST_UNSYNCED, "the manifest is not synced") \
    X(crash, HIDDEN_DIRECTORY_UNSYNCED, "the hidden directory is not synced") \
    X(crash, ROOT_UNSYNCED, "the root is not synced after the rename") \
    X(crash, ROOT_UNSYNCED_BEFORE_ASIDE, "without exchange: the root is not synced before the old one is moved aside") \
    X(crash, SYNC_BEFORE_WRITES_END, "files are synced while their last write is in flight") \
    X(failures, FSYNC_TRIED_AGAIN, "an fsync that failed is tried again, and its success believed") \
    X(commit, TAILS_NOT_CUT, "the padding of O_DIRECT writes stays at the files' ends") \
    X(rules, PARTIAL_DROPPED_BEFORE_SYNC, "a file gets its final name while it is being synced") \
    X(crash, MANIFEST_NAMED_AFTER_DIRECTORY_SYNC, "the manifest gets its name after the hidden directory was synced") \
    X(crash, RENAME_BEFORE_DIRECTORY_SYNC, "the hidden directory is synced after it was renamed") \
    X(rules, RENAME_OVER_WHAT_STANDS, "what came under the name meanwhile is replaced though nobody asked for it") \
    X(failures, RENAME_ERROR_TAKEN_FOR_CERTAIN, "any error of the rename is taken to mean that nothing was changed") \
    X(crash, REPORTED_BEFORE_ROOT_SYNC, "DURABLE is said while the root is being synced") \
    X(crash, REPLACED_REMOVED_BEFORE_ROOT_SYNC, "the replaced checkpoint is removed while the root is being synced") \
    X(commit, REPLACED_ONE_STAYS, "the replaced checkpoint is never removed") \
    X(crash, FOREIGN_FILES_NOT_LINKED, "files of others leave the name for a moment when it is replaced") \
    X(failures, UNKNOWN_IS_SWEPT, "what may have been published is removed") \
    X(failures, FAILED_ONE_STAYS, "a failed attempt is not removed") \
    X(commit, SHORT_WRITE_TAKEN_FOR_WHOLE, "a short write counts as a whole one") \
    X(commit, SHORT_WRITE_GOES_ON_ELSEWHERE, "what a short write left is written at the wrong place") \
    X(rules, SHORT_WRITE_GOES_ON_UNALIGNED, "what a short write left begins between blocks") \
    X(commit, CHUNK_RELEASED_BEFORE_ITS_HASH, "a chunk's slot is given back before the chunk is hashed") \
    X(commit, CHUNK_RELEASED_BEFORE_ITS_WRITE, "a chunk's slot is given back before the chunk is written") \
    X(write, STRADDLING_LEAF_CUT_SHORT, "a leaf that lies in two chunks is hashed without its last byte") \
    X(rules, STAGED_OF_ANOTHER_ATTEMPT_TAKEN, "the writer takes a chunk that another attempt staged") \
    X(write, EOF_TAKEN_FOR_TRAINERS_DEATH, "the end of the channel counts as the trainer's death") \
    X(deaths, DEATH_BEFORE_LAST_MESSAGES, "it is decided about a dead trainer's saves before its last messages are read") \
    X(deaths, STAGED_SAVE_DIES_WITH_TRAINER, "a save that was wholly staged is swept when its trainer dies") \
    X(rules, PART_NOT_LOCKED, "the part record is not locked") \
    X(write, SPACE_NOT_ASKED, "the free space is not looked at before the save begins") \
    X(supervisor, ANSWER_OF_ANOTHER_ATTEMPT_TAKEN, "the trainer takes an answer about another attempt") \
    X(supervisor, EOF_TAKEN_FOR_WRITERS_DEATH, "the end of the channel counts as the writer's death") \
    X(supervisor, DEATH_BEFORE_LAST_ANSWERS, "it is decided about a dead writer's saves before its last answers are read") \
    X(supervisor, SLOTS_FREED_AT_WRITTEN, "slots are given to the next save before this one is durable") \
    X(supervisor, RELEASE_OF_ANOTHER_SLOT_TAKEN, "a slot that the chunk does not have is freed on the writer's word") \
    X(supervisor, STAGED_BEFORE_TOLD, "STAGED is reached before the writer knows of every chunk") \
    X(supervisor, UNKNOWN_TAKEN_FOR_FAILED, "UNKNOWN is reported as FAILED") \
    X(recovery, RECOVERY_DOES_NOT_LOOK, "after a writer's death nobody looks whether the save was published") \
    X(recovery, RECOVERY_DOES_NOT_SYNC, "a checkpoint that was found published is reported before the root is synced") \
    X(recovery, RECOVERY_SWEEPS_UNDER_LOCK, "what a living writer holds locked is swept") \
    X(replay, REPLAYED_UNDER_OLD_NUMBER, "a replay runs under the number of the attempt that ended") \
    X(replay_larger, REPLAYED_FROM_FREED_SLOTS, "a save is replayed from slots that were given to others meanwhile") \
    X(replay, UNCLEAR_TAKEN_FOR_ABSENT, "a name that cannot be looked at counts as free, and the save is written again") \
    X(replay, HUNG_TAKEN_FOR_DEAD, "a writer that hangs in the kernel counts as dead, and its save is written again") \
    X(replay, DEATHS_NOT_COUNTED, "writers that die are replaced for ever") \
    X(pair, OLDER_SAVE_OVERTAKES, "of two saves of one name the one staged later may be replaced by the other") \
    X(ranks, PART_NAMED_BEFORE_SYNC, "a rank's part gets its name while what it lists is being synced") \
    X(ranks, PART_NAMED_WITH_ITS_FILES, "a rank's part gets its name before the names of its files are durable") \
    X(ranks, PART_NAME_UNSYNCED, "a rank's part is called durable before its name is") \
    X(ranks, PART_DURABLE_BEFORE_ROOT_SYNC, "a rank's part is called durable before the root is synced") \
    X(ranks, OTHER_RANKS_FILES_CLEARED, "a rank that saves again removes what the others saved") \
    X(ranks, MERGED_MANIFEST_UNSYNCED, "the manifest of all ranks is not synced") \
    X(ranks, MERGED_DIRECTORY_UNSYNCED, "the hidden directory is not synced after the manifest of all ranks has its name") \
    X(ranks, PUBLISHED_ROOT_UNSYNCED, "a publisher is done before the root is synced") \
    X(ranks, PARTS_REMOVED_BEFORE_RENAME, "the parts are removed before the directory is renamed") \
    X(ranks, MISSING_PART_ACCEPTED, "what is published lacks a rank's part") \
    X(ranks, PART_OF_ANOTHER_SAVE_ACCEPTED, "a part of another save is published with the rest") \
    X(ranks, PART_FILE_SIZE_NOT_COMPARED, "a publisher does not compare a file's size with what the part says") \
    X(ranks, PART_HEADER_DIGEST_NOT_COMPARED, "a publisher does not compare a header's digest with what the part says") \
    X(ranks, OBJECTS_OF_RANKS_NOT_COMPARED, "of different objects that ranks saved under one name the first is published") \
    X(recovery, PUBLISHED_PARTS_NOT_KNOWN, "a checkpoint of several ranks that was published meanwhile is not known") \
    X(recovery, FOUND_PART_NOT_SYNCED, "a part that was found standing is reported before its directory is synced") \
    X(recovery, RECOVERY_SWEEPS_OTHER_RANKS, "recovery sweeps the other ranks' files too") \
    X(orphans, ORPHAN_NOT_MARKED, "the record of a dead trainer's save does not say so") \
    X(collect, TAKEN_DOWN_UNSYNCED, "a checkpoint's files are deleted before its new name is durable") \
    X(collect, TAKEN_DOWN_UNSEEN, "what came under a name meanwhile is deleted for what was there") \
    X(collect, LIVING_ATTEMPT_COLLECTED, "an attempt that began anew is deleted for the dead one") \
    X(collect, FOREIGN_FILES_COLLECTED, "files of others are deleted with a checkpoint") \
    X(collect, DELETED_UNDER_ITS_NAME, "a checkpoint's file is deleted before the checkpoint has lost its name") \
    X(collect, KEPT_ONE_COLLECTED, "one checkpoint too many is deleted") \
    X(collect, SAVED_LAST_COLLECTED, "what was just saved is deleted because its step is an earlier one") \
    X(collect, DELETED_BESIDE_SAVES, "old checkpoints are deleted while a save runs") \
    X(stream, STREAM_FILE_UNSYNCED, "a streamed file gets its name without being synced") \
    X(stream, STREAM_DIRECTORY_UNSYNCED, "a commit returns before the new name is durable") \
    X(stream, STREAM_TAIL_NOT_CUT, "the padding of a stream's last write, and the space taken ahead, stay at its end") \
    X(stream, STREAM_LIVING_ONE_SWEPT, "the hidden file of a living stream is removed by another of that name") \
    X(stream, STREAM_SHORT_WRITE_TAKEN_FOR_WHOLE, "a stream takes a short write for a whole one") \
    X(stream, STREAM_SHORT_WRITE_GOES_ON_ELSEWHERE, "a stream writes what a short write left at the wrong place") \
    X(header_parse, HEADER_LENGTH_UNCHECKED, "the header's length is not checked against the file") \
    X(damage, MANIFEST_DIGEST_NOT_COMPARED, "the manifest's digest of itself is not compared") \
    X(damage, HEADER_DIGEST_NOT_COMPARED, "the header's digest is not compared") \
    X(damage, LISTED_SIZE_NOT_COMPARED, "a file's size is not compared with the manifest's") \
    X(damage, LISTED_DIGEST_NOT_COMPARED, "a listed file's digest is not compared") \
    X(damage, DIGESTS_DIGEST_NOT_COMPARED, "the digests file's digest is not compared") \
    X(damage, OBJECT_DIGEST_NOT_COMPARED, "an object's digest is not compared when it is loaded") \
    X(damage, LEAF_NOT_COMPARED, "a leaf's digest is not compared") \
    X(damage, LAST_LEAF_NOT_COMPARED, "the digest of a tensor's last, shorter leaf is not compared") \
    X(impostor, IMPOSTORS_OPENED, "what is no regular file is opened all the same")

#define MUTANT_NAMED(suite, name, sentence) MUTANT_##name,
enum mutant { MUTANT_NONE, MUTANTS(MUTANT_NAMED) MUTANT_END };
#undef MUTANT_NAMED

#ifdef TSPOOL_MUTANTS
extern enum mutant mutant_planted; /* the runner's; chosen before the engine runs */
#define MUTANT(name) (mutant_planted == MUTANT_##name)
#else
#define MUTANT(name) ((int)MUTANT_##name < 0)
#endif

#endif
