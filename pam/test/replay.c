/* Runs a fuzz target over the files named, without a fuzzer: what `make test` does with the kept
 * corpus, with whatever compiler there is. */
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const unsigned char *data, size_t len);

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		FILE *f = fopen(argv[i], "rb");
		unsigned char *data = malloc(1 << 20);
		size_t len;

		if (!f) {
			perror(argv[i]);
			return 2;
		}
		len = fread(data, 1, 1 << 20, f);
		fclose(f);
		fprintf(stderr, "%s\n", argv[i]); /* the last one named is the one that dies */
		data = realloc(data, len ? len : 1); /* one byte too far is seen */
		LLVMFuzzerTestOneInput(data, len);
		free(data);
	}
	return 0;
}
