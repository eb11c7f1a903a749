//! What cannot be reached: refused with the reason and the nearest moment, nothing touched.
