package facts

// Change sets one value in an object. What is not there on the way to it is created;
// nothing beside it is touched.
type Change struct {
	// Path are the names of fields and the positions in lists, in decimal; "-" at its
	// end stands for what is added to the end of a list that is there.
	Path []string
	// Value is a string, or of a type that is encoded as the object's is.
	Value any
}
