// File descriptors of this process.
#pragma once

namespace moebius {

// Raises the soft limit to `wanted`, or as far towards it as the hard one lets
// it; never lowers it. Returns the limit that holds then.
int RaiseDescriptorLimit(int wanted);

// How many are open.
int NumOpenDescriptors();

}  // namespace moebius
