package facts

// Change sets one string in an object. What is not there on the way to it is created;
// nothing beside it is touched.
type Change struct {
	// Path are the names of fields and the positions in lists, in decimal.
	Path  []string
	Value string
}
