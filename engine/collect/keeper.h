/* collect/keeper.h - retention beside a writer: after each published save the checkpoints beyond the newest `keep` go, on a
 * thread of low priority, between the saves.
 *
 *   - a save that begins stops it at the next slice, until no save runs below the root any more, this writer's or another's;
 *   - it goes on beside one when a whole save went by without a pause that sufficed, or when a save lacks the room: a trainer
 *     that saves without a pause must not fill its own disk;
 *   - the checkpoints that this writer saved last are spared, whatever their steps and clocks say;
 *   - what a writer that died left half deleted is finished by the next one when it starts; at its own end a writer goes on for
 *     two seconds at most.
 *
 * Nothing of a save depends on it: what it cannot remove stays, and is told with the next save.
 */
#ifndef COLLECT_KEEPER_H
#define COLLECT_KEEPER_H

#include <write/writer.h>

extern const struct keeping keeper_keeping;

#endif
