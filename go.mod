module github.com/meshvakt/meshvakt

go 1.26.0
